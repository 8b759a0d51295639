"""Rows without padding, their common beginnings computed once: the CPU's way through models of the Llama family.

Rows that begin alike (a template's head, a system prompt, two answers to one prompt) make a tree of pieces. Linear
layers and norms see the tokens of all pieces in one matrix; attention of a piece sees its own tokens and those on the
way to it. In the deepest block only the positions that are read ask a query and go through the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hf_safefilter.columns import Layer
from hf_safefilter.model.last_block import can_read_one_position, turned, window_of

if TYPE_CHECKING:
    from hf_safefilter.model.load import Trunk
    from hf_safefilter.model.tokens import Tokens

_LEAST = 8  # tokens: sharing fewer costs more than it saves


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that follow those of `parent`.

    Attributes:
        parent: number of the piece before; -1: the beginning.
        depth: tokens before this piece.
        ids: int32 (n,).
    """

    parent: int
    depth: int
    ids: np.ndarray


def can_pack(trunk: Trunk, longest: int) -> bool:
    """Whether rows of up to `longest` tokens can be read by `read_packed`: a known family, on a CPU, in full sight."""
    blocks = trunk.stack.blocks
    if trunk.device.type != "cpu" or not hasattr(trunk.model, "rotary_emb"):
        return False
    windows = [window_of(block.self_attn) for block in blocks if can_read_one_position(block)]
    return len(windows) == len(blocks) and all(window is None or longest <= window for window in windows)


def grown(rows: Sequence[np.ndarray]) -> tuple[list[Piece], list[int]]:
    """The tree of `rows` as `order` sorts them: its pieces, and for each row the piece that it ends with."""
    pieces: list[Piece] = []
    ends = [-1] * len(rows)

    def grow(members: list[int], depth: int, parent: int) -> None:
        first, last = rows[members[0]], rows[members[-1]]
        common = _common(first, last)
        if common == len(first) == len(last):  # one row, or equal ones that are read at different positions
            if depth < len(first):
                pieces.append(Piece(parent, depth, first[depth:]))
                parent = len(pieces) - 1
            for row in members:
                ends[row] = parent
            return
        if common - depth >= _LEAST:
            pieces.append(Piece(parent, depth, first[depth:common]))
            parent, depth = len(pieces) - 1, common
        groups: dict[bytes, list[int]] = {}
        for row in members:
            groups.setdefault(rows[row][depth : depth + _LEAST].tobytes(), []).append(row)
        for group in groups.values():
            grow(group, depth, parent)

    if rows:
        grow(list(range(len(rows))), 0, -1)
    return pieces, ends


def order(rows: Sequence[np.ndarray]) -> list[int]:
    """Numbers of the rows, those that begin alike next to each other."""
    return sorted(range(len(rows)), key=lambda row: rows[row].tobytes())


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two rows begin with alike."""
    least = min(len(one), len(other))
    different = np.flatnonzero(one[:least] != other[:least])
    return int(different[0]) if len(different) else least


def batches(rows: Sequence[np.ndarray], budget: int) -> Iterator[list[int]]:
    """Numbers of rows that are read together: those that begin alike, up to `budget` tokens; at least one."""
    batch: list[int] = []
    size = 0
    for row in order(rows):
        if batch and size + len(rows[row]) > budget:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(rows[row])
    if batch:
        yield batch


def read_packed(trunk: Trunk, tokens: Sequence[Tokens], layers: Sequence[Layer]) -> dict[Layer, torch.Tensor]:
    """Mean state over each row's read positions: float32 `(n, hidden_size)` for each layer.

    Args:
        trunk: of a family that `can_pack` knows, deep enough.
        tokens: readable rows, in the order of `order`.
        layers: what to read.
    """
    pieces, ends = grown([row.ids for row in tokens])
    starts = np.concatenate([[0], np.cumsum([len(piece.ids) for piece in pieces])])
    paths = [_path(pieces, starts, number) for number in range(len(pieces))]
    reads = [paths[end][row.start : row.stop] for row, end in zip(tokens, ends, strict=True)]
    with torch.inference_mode():
        return _run(trunk, pieces, paths, starts, reads, layers)


def _path(pieces: Sequence[Piece], starts: np.ndarray, number: int) -> np.ndarray:
    """Places, among all packed tokens, of the tokens from the beginning to the end of a piece."""
    parts = []
    while number >= 0:
        parts.append(np.arange(starts[number], starts[number + 1]))
        number = pieces[number].parent
    return np.concatenate(parts[::-1])


def _run(
    trunk: Trunk,
    pieces: Sequence[Piece],
    paths: Sequence[np.ndarray],
    starts: np.ndarray,
    reads: Sequence[np.ndarray],
    layers: Sequence[Layer],
) -> dict[Layer, torch.Tensor]:
    ids = torch.from_numpy(np.concatenate([piece.ids for piece in pieces]).astype(np.int64))
    places = torch.from_numpy(np.concatenate([np.arange(len(piece.ids)) + piece.depth for piece in pieces]))
    states = trunk.model.embed_tokens(ids)
    rotary = [part[0].unsqueeze(1) for part in trunk.model.rotary_emb(states[None], places[None])]
    contexts = [
        torch.from_numpy(path) if piece.parent >= 0 else None for piece, path in zip(pieces, paths, strict=True)
    ]
    deepest = max(trunk.n_blocks if layer == "norm" else layer for layer in layers)
    found: dict[Layer, torch.Tensor] = {}
    asked = torch.from_numpy(np.unique(np.concatenate(reads)))
    for number in range(deepest):
        if number in layers:
            found[number] = _mean(states, reads)
        only = asked if number == deepest - 1 else None
        states = _block(trunk.stack.blocks[number], states, rotary, pieces, contexts, starts, only)
    if deepest:  # the states at `asked` alone are left
        reads = [np.searchsorted(asked.numpy(), read) for read in reads]
    if deepest in layers:
        found[deepest] = _mean(states, reads)
    if "norm" in layers:
        found["norm"] = _mean(trunk.stack.final_norm(states), reads)
    return found


def _mean(states: torch.Tensor, reads: Sequence[np.ndarray]) -> torch.Tensor:
    if all(len(read) == 1 for read in reads):
        return states[torch.from_numpy(np.concatenate(reads))].float()
    return torch.stack([states[torch.from_numpy(read)].float().mean(0) for read in reads])


def _block(
    block: nn.Module,
    states: torch.Tensor,
    rotary: Sequence[torch.Tensor],
    pieces: Sequence[Piece],
    contexts: Sequence[torch.Tensor | None],
    starts: np.ndarray,
    only: torch.Tensor | None,
) -> torch.Tensor:
    """One block over packed states `(tokens, d)`; where `only` names positions, their output alone."""
    attention = block.self_attn
    normed = block.input_layernorm(states)

    def heads(projected: torch.Tensor, norm: str) -> torch.Tensor:
        split = projected.unflatten(-1, (-1, attention.head_dim))
        return getattr(attention, norm)(split) if hasattr(attention, norm) else split

    keys = turned(heads(attention.k_proj(normed), "k_norm"), *rotary)
    values = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
    here, asking = (states, normed) if only is None else (states[only], normed[only])
    at = rotary if only is None else [part[only] for part in rotary]
    queries = turned(heads(attention.q_proj(asking), "q_norm"), *at)
    mixed = torch.empty_like(queries)
    bounds = starts if only is None else np.searchsorted(only.numpy(), starts)
    for number, piece in enumerate(pieces):
        first, last = int(bounds[number]), int(bounds[number + 1])
        if first == last:
            continue
        own = slice(int(starts[number]), int(starts[number + 1]))
        context = contexts[number]
        seen = slice(own.start, own.stop) if context is None else context
        whole = only is None and context is None
        mask = None
        if not whole:
            within = np.arange(first, last) - first if only is None else only.numpy()[first:last] - own.start
            mask = _sight(piece.depth, within.tobytes(), len(piece.ids))
        mixed[first:last] = nn.functional.scaled_dot_product_attention(
            queries[first:last].transpose(0, 1)[None],
            keys[seen].transpose(0, 1)[None],
            values[seen].transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=whole,
            scale=attention.scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )[0].transpose(0, 1)
    here = here + attention.o_proj(mixed.flatten(1))
    return here + block.mlp(block.post_attention_layernorm(here))


@lru_cache(maxsize=256)
def _sight(before: int, within: bytes, length: int) -> torch.Tensor:
    """Which of `before + length` tokens each query sees, given its place within the piece: bool (queries, tokens)."""
    place = torch.from_numpy(np.frombuffer(within, np.int64).copy()) + before
    return torch.arange(before + length) <= place[:, None]
