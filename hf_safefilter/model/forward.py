"""Token rows -> vectors: batches under a token budget, only the blocks needed, only the positions asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model.last_block import at_one_position, can_read_one_position
from hf_safefilter.model.load import Trunk, depth_for
from hf_safefilter.model.packed import batches, can_pack, read_packed
from hf_safefilter.model.threads import pick_threads, threads

if TYPE_CHECKING:
    from hf_safefilter.model.blocks import Stack
    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

TOKEN_BUDGET = {"cpu": 512, "mps": 8192, "cuda": 32768}
"""Tokens a batch may hold, padding included, by kind of device. It decides speed and memory, never the vectors."""

PACKED_BUDGET = 1024
"""The same where rows are packed without padding."""


class _Read(Exception):
    """The deepest wanted layer has been read: nothing further down the model need run."""


def read_layers(
    trunk: Trunk, tokens: Sequence[Tokens], layers: Sequence[Layer], token_budget: int | None = None
) -> dict[Layer, np.ndarray]:
    """Mean state over each row's read positions, for several layers in one pass.

    Layer k is the input of block k (so the output of block k-1), layer L the raw output of the last block, "norm" the
    state after the final norm. The mean is taken in float32. Equal rows are computed once.

    Args:
        trunk: at least as deep as the deepest layer asks for.
        tokens: one entry a row; a row with a reason is not read.
        layers: what to read.
        token_budget: tokens a batch may hold, padding included; at least one row always goes in.

    Returns:
        For each layer float32 `(n, hidden_size)`, in the rows' order; NaN for rows with a reason.

    Raises:
        OptionError: a layer out of range.
        ModelError: "norm" of a model that has no final norm, or a single row that does not fit in memory.
    """
    if "norm" in layers and trunk.stack.final_norm is None:
        raise ModelError(
            f"{type(trunk.model).__name__} has no norm after its last block", fix=f"use layer {trunk.n_blocks} instead"
        )
    if (needed := depth_for(trunk.n_blocks, tuple(layers))) > trunk.depth:
        raise ModelError(
            f"{trunk.depth} blocks are loaded and layer {layers} needs {needed}", fix="load a deeper trunk"
        )
    vectors = {layer: np.full((len(tokens), trunk.hidden_size), np.nan, np.float32) for layer in layers}
    copies = _copies(tokens)
    first = [rows[0] for rows in copies]
    first.sort(key=lambda row: -len(tokens[row].ids))
    most = torch.get_num_threads()
    packs = can_pack(trunk, max((len(tokens[row].ids) for row in first), default=0))
    ways = _packed if packs else _batches_that_fit
    with threads(pick_threads(trunk.hidden_size, most) if trunk.device.type == "cpu" else most):
        for batch, read in ways(trunk, tokens, first, tuple(layers), token_budget):
            for layer in layers:
                vectors[layer][batch] = read[layer].numpy(force=True)
    for rows in copies:
        for layer in layers:
            vectors[layer][rows[1:]] = vectors[layer][rows[0]]
    return vectors


def _copies(tokens: Sequence[Tokens]) -> list[list[int]]:
    """The readable rows, equal ones together."""
    groups: dict[tuple[bytes, int, int], list[int]] = {}
    for row, item in enumerate(tokens):
        if not item.reason:
            groups.setdefault((item.ids.tobytes(), item.start, item.stop), []).append(row)
    return list(groups.values())


def _packed(
    trunk: Trunk, tokens: Sequence[Tokens], rows: list[int], layers: tuple[Layer, ...], token_budget: int | None
) -> Iterator[tuple[list[int], dict[Layer, torch.Tensor]]]:
    """Read `rows` without padding; on a CPU running out of memory ends the process, so there is no smaller try."""
    for batch in batches([tokens[row].ids for row in rows], token_budget or PACKED_BUDGET):
        numbers = [rows[place] for place in batch]
        yield numbers, read_packed(trunk, [tokens[row] for row in numbers], layers)


def _batches_that_fit(
    trunk: Trunk, tokens: Sequence[Tokens], rows: list[int], layers: tuple[Layer, ...], token_budget: int | None
) -> Iterator[tuple[list[int], dict[Layer, torch.Tensor]]]:
    """Run `rows` (longest first) in batches; on running out of memory halve the budget and go on."""
    budget = token_budget or trunk.token_budget or TOKEN_BUDGET.get(trunk.device.type, TOKEN_BUDGET["cpu"])
    while rows:
        longest = max(1, len(tokens[rows[0]].ids))
        batch = rows[: max(1, budget // longest)]
        try:
            read = run(trunk, [tokens[row] for row in batch], layers)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ModelError(
                    f"a single row of {longest} tokens does not fit in the memory of {trunk.device}",
                    fix="pass a smaller max_length, dtype='bfloat16', or device='cpu'",
                ) from error
            budget = len(batch) * longest // 2
            trunk.token_budget = budget
            logger.warning("out of memory on %s: batches now hold at most %d tokens", trunk.device, budget)
            read = None
        if read is None:  # outside the handler, where the failed forward's tensors are no longer held by its traceback
            if trunk.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        yield batch, read
        rows = rows[len(batch) :]


def run(trunk: Trunk, tokens: Sequence[Tokens], layers: Sequence[Layer]) -> dict[Layer, torch.Tensor]:
    """One forward over a padded batch: float32 `(n, hidden_size)` for each layer, on the trunk's device."""
    ids, mask = _pad([row.ids for row in tokens], trunk.model.config.pad_token_id or 0)
    # What is right of a token is out of sight for causal attention, which is faster without a mask.
    seen = None if trunk.stack.causal else mask.to(trunk.device)
    reader = _Reader([(row.start, row.stop) for row in tokens], len(layers))
    with torch.inference_mode(), _hooked(trunk.stack, layers, reader), suppress(_Read):
        trunk.model(input_ids=ids.to(trunk.device), attention_mask=seen)
    return reader.vectors


def _pad(rows: Sequence[np.ndarray], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and attention mask, int64 `(n, longest)`, whatever side the tokenizer would pad on."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.full_like(mask, pad if isinstance(pad, int) else 0)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.from_numpy(np.asarray(values, np.int64))
    return ids, mask


class _Reader:
    """Makes hooks that reduce states to their read positions at once, and stop the forward when all are there."""

    def __init__(self, spans: list[tuple[int, int]], wanted: int) -> None:
        self.spans, self.wanted = spans, wanted
        self.vectors: dict[Layer, torch.Tensor] = {}

    @property
    def one_each(self) -> bool:
        return all(stop - start == 1 for start, stop in self.spans)

    def keep(self, layer: Layer, vectors: torch.Tensor) -> None:
        self.vectors[layer] = vectors
        if len(self.vectors) == self.wanted:
            raise _Read

    def before(self, layer: Layer) -> Callable:
        return lambda _, args, kwargs: self.keep(layer, mean_at(_input(args, kwargs), self.spans))

    def after(self, layer: Layer) -> Callable:
        return lambda _, args, out: self.keep(layer, mean_at(out[0] if isinstance(out, tuple) else out, self.spans))

    def instead(self, layer: Layer) -> Callable:
        def read_one(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            states = _input(args, kwargs)
            positions = torch.tensor([start for start, _ in self.spans], device=states.device)
            self.keep(layer, at_one_position(block, states, kwargs["position_embeddings"], positions).float())

        return read_one


def _input(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def _hooked(stack: Stack, layers: Sequence[Layer], reader: _Reader) -> Iterator[None]:
    """The reader's hooks in place; in the order of the forward, as hooks of one module run in the order they came."""
    ordered = sorted(layers, key=lambda layer: len(stack.blocks) + 1 if layer == "norm" else layer)
    handles = []
    try:
        for layer in ordered:
            block = stack.blocks[0 if layer == 0 else -1 if layer == "norm" else layer - 1]
            if layer == "norm":
                handle = stack.final_norm.register_forward_hook(reader.after(layer))
            elif layer == 0:
                handle = block.register_forward_pre_hook(reader.before(layer), with_kwargs=True)
            elif layer == ordered[-1] and reader.one_each and can_read_one_position(block):
                handle = block.register_forward_pre_hook(reader.instead(layer), with_kwargs=True)
            else:
                handle = block.register_forward_hook(reader.after(layer))
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_at(states: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Float32 mean of `states[i, start:stop]` for each row i: `(n, positions, d)` -> `(n, d)`."""
    if all(stop - start == 1 for start, stop in spans):
        rows = torch.arange(len(spans), device=states.device)
        return states[rows, torch.tensor([start for start, _ in spans], device=states.device)].float()
    return torch.stack([states[row, start:stop].float().mean(0) for row, (start, stop) in enumerate(spans)])
