"""One backward pass per row: the gradient of each parameter is passed on as soon as it is complete, then dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from hf_safefilter.scores.gradient.examples import Example, row_losses
from hf_safefilter.scores.gradient.meters import Meter, widen
from hf_safefilter.scores.gradient.tuned import Tuned

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def measure_row(tuned: Tuned, example: Example, meter: Meter, row: int = 0) -> float:
    """Add the gradient of one row to row `row` of `meter`; returns the loss.

    A gradient is dropped once it was added, so that it cannot accumulate into that of the next row.
    """

    def add(name: str, gradient: torch.Tensor) -> None:
        meter.add(name, gradient[None], slice(row, row + 1))

    with streaming(tuned, add), torch.enable_grad():
        loss = row_losses(tuned.model, [example], tuned.mask)[0]
        torch.autograd.backward(loss)
    return float(loss.detach())


def streamed(tuned: Tuned, example: Example) -> dict[str, torch.Tensor]:
    """The whole gradient of one anchor row by parameter name, float32 or wider, on the CPU."""
    gradients: dict[str, torch.Tensor] = {}

    def add(name: str, gradient: torch.Tensor) -> None:
        gradients[name] = widen(gradient).cpu()

    with streaming(tuned, add), torch.enable_grad():
        torch.autograd.backward(row_losses(tuned.model, [example], tuned.mask)[0])
    return gradients


@contextmanager
def streaming(tuned: Tuned, add: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Inside the block, each chosen parameter requires a gradient, which goes to `add` when it is complete."""

    def pass_on(name: str, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            add(name, parameter.grad.detach())
        parameter.grad = None

    handles = []
    try:
        for name, parameter in tuned.parameters.items():
            parameter.grad = None
            parameter.requires_grad_(True)
            handles.append(_when_complete(parameter, partial(pass_on, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in tuned.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)


def _when_complete(parameter: nn.Parameter, hook: Callable[[torch.Tensor], None]) -> RemovableHandle:
    handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return cast("RemovableHandle", handle)
