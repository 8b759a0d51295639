"""One row, one backward: the gradient of each parameter is handed over as soon as it is there, and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_safefilter.scores.gradient.examples import Example, row_losses
from hf_safefilter.scores.gradient.meters import Meter, widen
from hf_safefilter.scores.gradient.tuned import Tuned


def measure_row(tuned: Tuned, example: Example, meter: Meter, row: int = 0) -> float:
    """Stream one row's gradient into row `row` of `meter`; returns the loss.

    Nothing stays behind: a gradient is dropped once it was handed over, so that no row sees the one before it.
    """

    def hand_over(name: str, parameter: nn.Parameter) -> None:
        meter.add(name, parameter.grad.detach()[None], slice(row, row + 1))
        parameter.grad = None

    with streaming(tuned, hand_over), torch.enable_grad():
        loss = row_losses(tuned.model, [example], tuned.mask)[0]
        loss.backward()
    return float(loss.detach())


def streamed(tuned: Tuned, example: Example) -> dict[str, torch.Tensor]:
    """One row's whole gradient by parameter name, float32 or wider, on the CPU; of anchors, which are few."""
    found: dict[str, torch.Tensor] = {}

    def hand_over(name: str, parameter: nn.Parameter) -> None:
        found[name] = widen(parameter.grad.detach()).cpu()
        parameter.grad = None

    with streaming(tuned, hand_over), torch.enable_grad():
        row_losses(tuned.model, [example], tuned.mask)[0].backward()
    return found


@contextmanager
def streaming(tuned: Tuned, hand_over: Callable[[str, nn.Parameter], None]) -> Iterator[None]:
    """The parameters that count require gradients inside the block, each given to `hand_over` when it is whole."""
    handles = []
    try:
        for name, parameter in tuned.parameters.items():
            parameter.grad = None
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(lambda one, name=name: hand_over(name, one)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in tuned.parameters.values():
            parameter.grad = None
            parameter.requires_grad_(False)
