"""Token sequences -> vectors: batches under a token budget, only the blocks needed, only the reads asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model import budget
from hf_safefilter.model import prefix_tree as tree
from hf_safefilter.model.block_by_block import Laid, rows_of_passes, through_blocks, try_ways
from hf_safefilter.model.load import Trunk, depth_for
from hf_safefilter.model.packed import can_pack, lay_packed, read_packed
from hf_safefilter.model.padded import can_pad, lay_padded, read_padded, words_of
from hf_safefilter.model.threads import pick_threads, threads

if TYPE_CHECKING:
    from hf_safefilter.model.hooks import Forward, Reads
    from hf_safefilter.model.left_out import LeftOut
    from hf_safefilter.model.windows import Read, TokenSequence

_WAITING = 2**26  # bytes of vectors that wait on the device: fetching each batch's would make the device wait

Batch = tuple[list[int], dict[Layer, torch.Tensor]]


def read_layers(
    trunk: Trunk,
    sequences: Sequence[TokenSequence],
    layers: Sequence[Layer],
    token_budget: int | None = None,
    advance: Callable[[float], None] | None = None,
) -> dict[Layer, np.ndarray]:
    """Mean state over each read of each sequence, for several layers in one pass.

    Layer k is the input of block k (so the output of block k-1), layer L the raw output of the last block, "norm" the
    state after the final norm. The mean is taken in float32. Equal sequences are computed once.

    Args:
        trunk: At least as deep as the deepest layer asks for.
        sequences: What is read.
        layers: Where it is read.
        token_budget: Tokens a batch may hold, padding included; at least one sequence always goes in.
        advance: Called after each batch with the share of the tokens that are read.

    Returns:
        For each layer float32 `(reads, hidden_size)`: the reads of the first sequence, then those of the second, ...

    Raises:
        OptionError: A layer out of range.
        ModelError: "norm" of a model that has no final norm, a token that the model has no embedding for, or a single
            sequence that does not fit in memory.
    """
    if "norm" in layers and trunk.stack.final_norm is None:
        raise ModelError(
            f"{type(trunk.model).__name__} has no norm after its last block", fix=f"use layer {trunk.n_blocks} instead"
        )
    if (needed := depth_for(trunk.n_blocks, tuple(layers))) > trunk.depth:
        raise ModelError(
            f"{trunk.depth} blocks are loaded and layer {layers} needs {needed}", fix="load a deeper trunk"
        )
    starts = np.concatenate([[0], np.cumsum([len(one.reads) for one in sequences])]).astype(np.int64)
    vectors = {layer: np.full((int(starts[-1]), trunk.hidden_size), np.nan, np.float32) for layer in layers}
    copies = _copies(sequences)
    first = [rows[0] for rows in copies]
    most = torch.get_num_threads()
    count = pick_threads(trunk.hidden_size, most) if trunk.device.type == "cpu" else most
    with trunk.busy, threads(count):
        if trunk.left_out is not None and first:
            try_ways(trunk, trunk.left_out)
        way = _way(trunk, [sequences[row].ids for row in first])
        in_batches = _batches_that_fit if trunk.left_out is None else _batches_of_passes
        batches = in_batches(trunk, sequences, first, tuple(layers), way, token_budget)
        done, total = 0, sum(len(sequences[row].ids) for row in first)
        for numbers, found in _fetched(batches, 0 if trunk.device.type == "cpu" else _WAITING):
            done += sum(len(sequences[row].ids) for row in numbers)
            if advance is not None:
                advance(done / max(1, total))
            places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in numbers])
            for layer in layers:
                vectors[layer][places] = found[layer]
    for original, *others in copies:
        for other in others:
            for values in vectors.values():
                values[starts[other] : starts[other + 1]] = values[starts[original] : starts[original + 1]]
    return vectors


def _way(trunk: Trunk, rows: Sequence[np.ndarray]) -> Way:
    """The fastest of the ways in which this model reads a row as it does alone."""
    if not rows:
        return PADDED
    require_embedded(rows, words_of(trunk.model))
    if can_pack(trunk, max(map(len, rows))):
        return PACKED
    return PADDED if can_pad(trunk) else ALIKE


def require_embedded(rows: Sequence[np.ndarray], words: int) -> None:
    """Raise unless a model with embeddings for `words` tokens has one for each of these ids.

    Raises:
        ModelError: It does not.
    """
    largest = max((int(row.max()) for row in rows if len(row)), default=0)
    if largest >= words:
        raise ModelError(
            f"the tokenizer writes token {largest}, and the model has embeddings for {words} tokens",
            fix="use the tokenizer that belongs to this model, or enlarge the model: model.resize_token_embeddings",
        )


def _copies(sequences: Sequence[TokenSequence]) -> list[list[int]]:
    """Numbers of the sequences, equal ones together."""
    groups: dict[tuple[bytes, tuple[Read, ...]], list[int]] = {}
    for number, one in enumerate(sequences):
        groups.setdefault((one.ids.tobytes(), one.reads), []).append(number)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class Way:
    """How sequences go through a model.

    Attributes:
        sort: An order of the sequences in which neighbours are cheap to read together.
        held: Tokens that a batch holds, from the lengths of its sequences.
        read: One forward.
        lay: Makes a batch ready for several: where it is read, and how it goes through the model.
        alike: Whether all sequences of a batch must have one length.
    """

    sort: Callable[[Sequence[np.ndarray]], list[int]]
    held: Callable[[Sequence[int]], int]
    read: Callable[[Trunk, Sequence[TokenSequence], Sequence[Layer]], dict[Layer, torch.Tensor]]
    lay: Callable[[Trunk, Sequence[TokenSequence]], tuple[Reads, Forward]]
    alike: bool = False

    def leading(self, lengths: Sequence[int], most: int) -> int:
        """How many of the sequences that come next hold up to `most` tokens; at least one."""
        rows = 1
        while rows < len(lengths) and self.held(lengths[: rows + 1]) <= most:
            if self.alike and lengths[rows] != lengths[0]:
                break
            rows += 1
        return rows


PADDED = Way(
    sort=lambda rows: sorted(range(len(rows)), key=lambda row: -len(rows[row])),
    held=lambda lengths: max(lengths) * len(lengths),
    read=read_padded,
    lay=lay_padded,
)
PACKED = Way(sort=tree.order, held=sum, read=read_packed, lay=lay_packed)
ALIKE = replace(PADDED, alike=True)


def _batches_that_fit(
    trunk: Trunk,
    sequences: Sequence[TokenSequence],
    rows: list[int],
    layers: tuple[Layer, ...],
    way: Way,
    token_budget: int | None,
) -> Iterator[Batch]:
    """Run `rows` in batches; on running out of memory halve the budget and go on."""
    most = token_budget or budget.token_budget(trunk, way is PACKED)
    rows = [rows[at] for at in way.sort([sequences[row].ids for row in rows])]
    lengths = [max(1, len(sequences[row].ids)) for row in rows]
    done = 0
    while done < len(rows):
        count = way.leading(lengths[done:], most)
        batch, held = rows[done : done + count], way.held(lengths[done : done + count])
        try:
            found = way.read(trunk, [sequences[row] for row in batch], layers)
        except torch.OutOfMemoryError as error:
            if count == 1:
                raise _too_long(trunk, held) from error
            most = budget.lower(trunk, held)
            found = None
        if found is None:  # outside the handler, where the failed forward's tensors are no longer held by its traceback
            _empty_cache(trunk)
            continue
        yield batch, found
        done += count


def _batches_of_passes(
    trunk: Trunk,
    sequences: Sequence[TokenSequence],
    rows: list[int],
    layers: tuple[Layer, ...],
    way: Way,
    token_budget: int | None,
) -> Iterator[Batch]:
    """The same through a model whose blocks are loaded one at a time; on running out of memory a pass begins again."""
    left_out, depth = cast("LeftOut", trunk.left_out), depth_for(trunk.n_blocks, layers)
    rows = [rows[at] for at in way.sort([sequences[row].ids for row in rows])]
    for part in rows_of_passes([len(sequences[row].ids) for row in rows], trunk.state_bytes or 0):
        digest = _digest([sequences[rows[at]] for at in part])
        most = token_budget or budget.token_budget(trunk, way is PACKED)
        found = None
        while found is None:
            batches = _laid(trunk, sequences, [rows[at] for at in part], way, most)
            try:
                found = through_blocks(trunk, left_out, batches, layers, depth, digest)
            except torch.OutOfMemoryError as error:
                held = max(batch.tokens for batch in batches)
                if all(len(batch.rows) == 1 for batch in batches):
                    raise _too_long(trunk, held) from error
                most = budget.lower(trunk, min(held, most))
            if found is None:
                _empty_cache(trunk)
        for place, batch in enumerate(batches):
            yield batch.rows, {layer: parts[place] for layer, parts in found.items()}


def _laid(trunk: Trunk, sequences: Sequence[TokenSequence], rows: list[int], way: Way, most: int) -> list[Laid]:
    lengths = [max(1, len(sequences[row].ids)) for row in rows]
    batches, done = list[Laid](), 0
    while done < len(rows):
        count = way.leading(lengths[done:], most)
        batch = rows[done : done + count]
        held = way.held(lengths[done : done + count])
        batches.append(Laid(batch, held, *way.lay(trunk, [sequences[row] for row in batch])))
        done += count
    return batches


def _digest(sequences: Sequence[TokenSequence]) -> str:
    total = hashlib.sha256()
    for one in sequences:
        total.update(f"{len(one.ids)} {one.reads};".encode() + one.ids.tobytes())
    return total.hexdigest()


def _too_long(trunk: Trunk, held: int) -> ModelError:
    return ModelError(
        f"a single row of {held} tokens does not fit in the memory of {trunk.device}",
        fix="pass a smaller max_length, dtype='bfloat16', or device='cpu'",
    )


def _empty_cache(trunk: Trunk) -> None:
    if trunk.device.type == "cuda":
        torch.cuda.empty_cache()


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
