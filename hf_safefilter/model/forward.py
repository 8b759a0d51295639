"""Token rows -> vectors: batches under a token budget, only the blocks needed, only the positions asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model import budget
from hf_safefilter.model import prefix_tree as tree
from hf_safefilter.model.load import Trunk, depth_for
from hf_safefilter.model.packed import can_pack, read_packed
from hf_safefilter.model.padded import read_padded
from hf_safefilter.model.threads import pick_threads, threads

if TYPE_CHECKING:
    from hf_safefilter.model.tokens import Tokens

_WAITING = 2**26  # bytes of vectors that wait on the device: fetching each batch's would make the device wait

Batch = tuple[list[int], dict[Layer, torch.Tensor]]


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
    most = torch.get_num_threads()
    count = pick_threads(trunk.hidden_size, most) if trunk.device.type == "cpu" else most
    with trunk.busy, threads(count):
        way = PACKED if first and can_pack(trunk, max(len(tokens[row].ids) for row in first)) else PADDED
        batches = _batches_that_fit(trunk, tokens, first, tuple(layers), way, token_budget)
        for numbers, found in _fetched(batches, 0 if trunk.device.type == "cpu" else _WAITING):
            for layer in layers:
                vectors[layer][numbers] = found[layer]
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


@dataclass(frozen=True, slots=True)
class Way:
    """How rows go through a model.

    Attributes:
        sort: an order of the rows in which neighbours are cheap to read together.
        held: tokens that a batch holds, from the lengths of its rows.
        read: one forward.
    """

    sort: Callable[[Sequence[np.ndarray]], list[int]]
    held: Callable[[Sequence[int]], int]
    read: Callable[[Trunk, Sequence[Tokens], Sequence[Layer]], dict[Layer, torch.Tensor]]

    def leading(self, lengths: Sequence[int], most: int) -> int:
        """How many rows, of those that come next, hold up to `most` tokens; at least one."""
        rows = 1
        while rows < len(lengths) and self.held(lengths[: rows + 1]) <= most:
            rows += 1
        return rows


PADDED = Way(
    sort=lambda rows: sorted(range(len(rows)), key=lambda row: -len(rows[row])),
    held=lambda lengths: max(lengths) * len(lengths),
    read=read_padded,
)
PACKED = Way(sort=tree.order, held=sum, read=read_packed)


def _batches_that_fit(
    trunk: Trunk,
    tokens: Sequence[Tokens],
    rows: list[int],
    layers: tuple[Layer, ...],
    way: Way,
    token_budget: int | None,
) -> Iterator[Batch]:
    """Run `rows` in batches; on running out of memory halve the budget and go on."""
    most = token_budget or budget.token_budget(trunk, way is PACKED)
    rows = [rows[at] for at in way.sort([tokens[row].ids for row in rows])]
    lengths = [max(1, len(tokens[row].ids)) for row in rows]
    done = 0
    while done < len(rows):
        count = way.leading(lengths[done:], most)
        batch, held = rows[done : done + count], way.held(lengths[done : done + count])
        try:
            found = way.read(trunk, [tokens[row] for row in batch], layers)
        except torch.OutOfMemoryError as error:
            if count == 1:
                raise ModelError(
                    f"a single row of {held} tokens does not fit in the memory of {trunk.device}",
                    fix="pass a smaller max_length, dtype='bfloat16', or device='cpu'",
                ) from error
            most = budget.lower(trunk, held)
            found = None
        if found is None:  # outside the handler, where the failed forward's tensors are no longer held by its traceback
            if trunk.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        yield batch, found
        done += count


def _fetched(batches: Iterator[Batch], most: int) -> Iterator[tuple[list[int], dict[Layer, np.ndarray]]]:
    """The same in this machine's memory, fetched when `most` bytes wait."""
    waiting: list[Batch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += sum(vectors.nbytes for vectors in batch[1].values())
        if size >= most:
            yield _fetch(waiting)
            waiting, size = [], 0
    if waiting:
        yield _fetch(waiting)


def _fetch(waiting: list[Batch]) -> tuple[list[int], dict[Layer, np.ndarray]]:
    found = {layer: torch.cat([vectors[layer] for _, vectors in waiting]) for layer in waiting[0][1]}
    return [row for rows, _ in waiting for row in rows], {k: vectors.numpy(force=True) for k, vectors in found.items()}
