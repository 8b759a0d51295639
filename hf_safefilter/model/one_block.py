"""One block of a model for a batch: those before it are passed over, those after it do not run.

The model's own forward computes what it hands to its blocks (rotations, masks), whatever its architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model.hooks import Enough, Forward, Reads, input_of, read

if TYPE_CHECKING:
    from hf_safefilter.model.blocks import Stack

_passed_on: ContextVar[torch.Tensor | None] = ContextVar("what the last block that was passed over has returned")


def last_states(
    stack: Stack, number: int, states: torch.Tensor | None, layers: Sequence[Layer], reads: Reads, forward: Forward
) -> dict[Layer, torch.Tensor]:
    """What `layers` are after block `number`, which is the last one that runs; see `hooks.read`.

    Args:
        stack: The blocks; block `number` has its weights.
        number: From 0.
        states: Its input; None for the first block, whose input the model itself computes.
        layers: The output of the block, "norm", or 0 before the first block.
        reads: Where they are read.
        forward: A pass of the batch through the model.
    """
    handle = stack.blocks[number].register_forward_pre_hook(_given(states), with_kwargs=True)
    try:
        with _stopped_after(stack, number):
            return read(stack, layers, reads, forward)
    finally:
        handle.remove()


def next_states(
    stack: Stack, number: int, states: torch.Tensor | None, layers: Sequence[Layer], reads: Reads, forward: Forward
) -> tuple[torch.Tensor, int, dict[Layer, torch.Tensor]]:
    """The output of block `number`, and what `layers` are before and after it.

    Returns:
        The states, how many values the block returns (0: only the states, in no tuple), and float32
        `(reads, hidden_size)` for each of `layers`, which may hold 0 before the first block and ``number + 1``.

    Raises:
        ModelError: The block hands more than its states to the next one, the model computes between the two, or the
            block does not run.
    """
    block, found = stack.blocks[number], dict[Layer, torch.Tensor]()
    returned: list[Any] = []

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if states is None and 0 in layers:
            found[0] = reads.mean(input_of(args, kwargs))
        return _given(states)(_, args, kwargs)

    def after(_: nn.Module, args: tuple, out: Any) -> None:
        returned.append(out)
        raise Enough

    handles = [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]
    try:
        with torch.inference_mode(), _stopped_after(stack, number), suppress(Enough):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if not returned:
        raise ModelError(
            f"block {number} does not run for rows of text",
            fix="use a machine that holds the model: it cannot be read block by block",
        )
    out = returned[0]
    width = len(out) if isinstance(out, tuple) else 0
    if width and any(value is not None for value in out[1:]):
        raise ModelError(
            f"the blocks of {type(block).__name__} hand on more than their states",
            fix="use a machine that holds the model: it cannot be read block by block",
        )
    after_block = out[0] if width else out
    if number + 1 in layers:
        found[number + 1] = reads.mean(after_block)
    return after_block, width, found


@contextmanager
def passed_over(blocks: Sequence[nn.Module], width: int) -> Iterator[None]:
    """Inside the block, these `blocks` return the states that they are called with, as one of `width` values."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        states = input_of(args, kwargs)
        _passed_on.set(states)
        return (states, *[None] * (width - 1)) if width else states

    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        _passed_on.set(None)  # which would be held in memory


@contextmanager
def _stopped_after(stack: Stack, number: int) -> Iterator[None]:
    """Inside the block, what comes after block `number` does not run: it has no weights. Some models skip `number`."""

    def stop(*_: Any) -> None:
        raise Enough

    following = list(stack.blocks)[number + 1 : number + 2]
    handles = [block.register_forward_pre_hook(stop) for block in following]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _given(states: torch.Tensor | None) -> Any:
    def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if states is None:
            return None
        if input_of(args, kwargs) is not _passed_on.get():
            raise ModelError(
                f"the model computes between its blocks of {type(block).__name__}",
                fix="use a machine that holds the model: it cannot be read block by block",
            )
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    return hook
