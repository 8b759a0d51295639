"""Reading states on their way through a model: hooks that reduce them to the read positions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model.attention import Packed, on
from hf_safefilter.model.last_block import at_positions, can_read_positions

if TYPE_CHECKING:
    from hf_safefilter.model.blocks import Stack


class Enough(Exception):
    """What was wanted has been read: nothing further down the model need run."""


Forward = Callable[[], object]
"""One pass of a batch through a model."""


@dataclass(slots=True)
class Reads:
    """Where a forward is read: places among all its tokens.

    Attributes:
        places: int64 for each read; states count row by row where there are several, padding included.
        device: Where the states are before the first block.
        packed: The rows, if they are packed; then the deepest block may be computed where it is read alone.
    """

    places: Sequence[np.ndarray]
    device: torch.device
    packed: Packed | None = None
    one_each: bool = field(init=False)
    _there: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        counts = np.array([len(places) for places in self.places])
        self.one_each = bool((counts == 1).all())  # whether each read is of one place
        self._there[self.device] = (
            on(self.device, np.concatenate(self.places)),
            on(self.device, np.cumsum(counts) - counts),
        )

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """Float32 mean over the places of each read: `(..., d)` -> `(reads, d)`."""
        states, device = states.reshape(-1, states.shape[-1]), states.device
        if device not in self._there:
            index, offsets = self._there[self.device]
            self._there[device] = index.to(device, non_blocking=True), offsets.to(device, non_blocking=True)
        index, offsets = self._there[device]
        if self.one_each:
            return states[index].float()
        if states.dtype != torch.float32:  # the sum must not be rounded to 16 bits
            states, index = states[index].float(), torch.arange(len(index), device=device)
        return nn.functional.embedding_bag(index, states, offsets, mode="mean")  # gathers and adds in one go


def read(stack: Stack, layers: Sequence[Layer], reads: Reads, forward: Forward) -> dict[Layer, torch.Tensor]:
    """Run `forward` as far as the deepest of `layers`: float32 `(n, hidden_size)` for each, on the states' device.

    Raises:
        ModelError: A block did not run: some read images alone.
    """
    reader = _Reader(reads, stack, layers)
    with torch.inference_mode(), reader.hooked(), suppress(Enough):
        forward()
    if skipped := [layer for layer in layers if layer not in reader.vectors]:
        raise ModelError(
            f"layer {skipped[0]} is not computed for rows of text", fix="choose another layer: its block reads images"
        )
    return reader.vectors


class _Reader:
    def __init__(self, reads: Reads, stack: Stack, layers: Sequence[Layer]) -> None:
        self.reads, self.stack = reads, stack
        n_blocks = len(stack.blocks)
        # hooks of one module run in the order they came, so they must come in the order of the forward
        self.layers = sorted(layers, key=lambda layer: n_blocks + 1 if layer == "norm" else layer)
        self.vectors: dict[Layer, torch.Tensor] = {}

    def keep(self, layer: Layer, vectors: torch.Tensor) -> None:
        self.vectors[layer] = vectors
        if len(self.vectors) == len(self.layers):
            raise Enough

    def before(self, layer: Layer) -> Callable:
        return lambda _, args, kwargs: self.keep(layer, self.reads.mean(input_of(args, kwargs)))

    def after(self, layer: Layer) -> Callable:
        return lambda _, args, out: self.keep(layer, self.reads.mean(out[0] if isinstance(out, tuple) else out))

    def instead(self, wanted: Sequence[Layer]) -> Callable:
        """A hook on the deepest block: it is computed at the read places, and what follows it as well."""
        asked = np.unique(np.concatenate(self.reads.places))
        there = Reads([np.searchsorted(asked, places) for places in self.reads.places], self.reads.device)

        def read_places(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            states, rotary = input_of(args, kwargs)[0], kwargs["position_embeddings"]
            packed = cast("Packed", self.reads.packed)
            if "norm" in wanted or there.one_each:
                states = at_positions(block, states, rotary, packed, asked)
                for layer in wanted:
                    self.keep(layer, there.mean(self._final_norm(states) if layer == "norm" else states))
            else:
                self.keep(wanted[0], at_positions(block, states, rotary, packed, asked, there.mean))

        return read_places

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """All hooks in place."""
        blocks, handles = self.stack.blocks, []
        deepest = [layer for layer in self.layers if layer in (self._depth(), "norm")]
        try:
            for layer in self.layers:
                if self._depth() and layer in deepest and self._can_read_places():
                    if layer == deepest[0]:
                        hook = self.instead(deepest)
                        handles.append(blocks[self._depth() - 1].register_forward_pre_hook(hook, with_kwargs=True))
                elif isinstance(layer, str):
                    handles.append(self._final_norm.register_forward_hook(self.after(layer)))
                elif layer == 0:
                    handles.append(blocks[0].register_forward_pre_hook(self.before(layer), with_kwargs=True))
                else:
                    handles.append(blocks[layer - 1].register_forward_hook(self.after(layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _depth(self) -> int:
        """Blocks that run."""
        deepest = self.layers[-1]
        return len(self.stack.blocks) if isinstance(deepest, str) else deepest

    @property
    def _final_norm(self) -> nn.Module:
        return cast("nn.Module", self.stack.final_norm)  # "norm" is refused for models that have none

    def _can_read_places(self) -> bool:
        if self.reads.packed is None or not can_read_positions(self.stack.blocks[self._depth() - 1]):
            return False
        # the kernel for GPUs gathers the keys of each read place, which pays for one place a row
        return self.reads.device.type == "cpu" or self.reads.one_each


def input_of(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """The states that a block is called with."""
    return args[0] if args else kwargs["hidden_states"]
