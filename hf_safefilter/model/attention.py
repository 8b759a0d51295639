"""Attention over packed rows: an implementation for transformers' own attention interface.

All else in a decoder treats each token by itself, so a model whose attention comes from here reads rows of any
lengths in one sequence without padding, common beginnings once. On a GPU of the Ampere generation or later it is one
call of torch's variable-length flash attention; on a CPU, piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_safefilter.model.prefix_tree import Layout

NAME = "hf_safefilter_packed"
"""As what transformers knows it."""

_HARMLESS = {"dropout", "is_causal", "position_ids", "position_embeddings", "use_cache", "output_attentions"}
_WIDEST = 256  # channels of a head that flash attention takes
_MANY = 8  # heads from which on `_by_blocks` keeps all processors busy
_BLOCK = 64  # queries that look at their keys together on a CPU: the products stay in its caches
_current: ContextVar[Packed] = ContextVar("packed rows")


class Unfit(Exception):
    """The model asks of attention what is not done here (caps, sinks, biases, short windows): read it padded."""


class Packed:
    """Rows laid out for one forward on `device`: which keys each query sees."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.device = device

    @cached_property
    def runs(self) -> list[list[slice]]:
        """For each piece what it sees, as runs of neighbouring places."""
        cuts = [np.flatnonzero(np.diff(path) != 1) + 1 for path in self.layout.paths]
        parts = (np.split(path, cut) for path, cut in zip(self.layout.paths, cuts, strict=True))
        return [[slice(int(run[0]), int(run[-1]) + 1) for run in path] for path in parts]

    @cached_property
    def hidden(self) -> torch.Tensor:
        """Added to products, it hides what lies ahead: float32 `(_BLOCK, longest + _BLOCK)`, -inf or 0.

        Queries from the n-th token of a row on find their share from column `longest - n` on.
        """
        longest = max(map(len, self.layout.paths))
        return torch.full((_BLOCK, longest + _BLOCK), -torch.inf).triu(longest + 1)

    @cached_property
    def whole(self) -> Sequences:
        """For flash attention: a query sequence a piece."""
        lengths = np.diff(self.layout.starts)
        shared = any(piece.parent >= 0 for piece in self.layout.pieces)
        return Sequences.of(lengths, self.layout.paths, self.device, gather=shared)

    def at(self, places: np.ndarray) -> Sequences:
        """For flash attention: a query sequence of one token for each of `places`."""
        return Sequences.of(np.ones(len(places), int), [self.layout.seen_from(p) for p in places], self.device)


class Sequences:
    """What the variable-length kernel wants to know, on the device."""

    def __init__(self, bounds: Sequence[torch.Tensor], longest: Sequence[int], gather: torch.Tensor | None) -> None:
        self.bounds, self.longest, self.gather = bounds, longest, gather

    @classmethod
    def of(cls, queries: np.ndarray, seen: list[np.ndarray], device: torch.device, gather: bool = True) -> Sequences:
        """From the number of queries of each sequence, and the places of the keys that it sees."""
        keys = np.array([len(places) for places in seen])
        bounds = [on(device, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)) for lengths in (queries, keys)]
        places = on(device, np.concatenate(seen)) if gather else None
        return cls(bounds, (int(queries.max()), int(keys.max())), places)


def on(device: torch.device, values: np.ndarray) -> torch.Tensor:
    """`values` on `device`, without waiting for what it is busy with."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def attending(model: nn.Module, rows: Packed) -> Iterator[None]:
    """The attention of `model` is that of these rows inside the block."""
    before, token = model.config._attn_implementation, _current.set(rows)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        _current.reset(token)
        model.set_attn_implementation(before)


def _interface(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: `(1, heads, tokens, channels)` -> `(1, tokens, heads, channels)`."""
    rows = _current.get()
    asked = sorted(name for name, told in more.items() if told is not None and name not in _HARMLESS)
    if asked or attention_mask is not None or more.get("is_causal") is False or more.get("dropout"):
        raise Unfit(f"{type(module).__name__} asks for {', '.join(asked) or 'a mask of its own'}")
    if sliding_window is not None and sliding_window < max(map(len, rows.layout.paths)):
        raise Unfit(f"a row is longer than the window of {sliding_window} tokens")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise Unfit(f"{type(module).__name__} attends to more than these rows")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(*(part[0].transpose(0, 1) for part in (query, key, value)), rows, scaling)[None], None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Packed,
    scaling: float,
    only: np.ndarray | None = None,
) -> torch.Tensor:
    """Causal attention of packed rows.

    Args:
        query: `(tokens, heads, channels)`, or as many as `only` names.
        key: `(tokens, heads or fewer, channels)`.
        value: likewise.
        rows: which tokens belong together.
        scaling: of the products.
        only: sorted places that ask; None: all.
    """
    if rows.device.type == "cpu":
        return _piece_by_piece(query, key, value, rows, scaling, only)
    return _in_one_call(query, key, value, rows.whole if only is None else rows.at(only), scaling)


def _in_one_call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if not (query.shape[-1] == value.shape[-1] <= _WIDEST):
        raise Unfit(f"flash attention takes heads of up to {_WIDEST} channels, as many in values as in queries")
    if sequences.gather is not None:
        key, value = key[sequences.gather], value[sequences.gather]
    return varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        *sequences.bounds,
        *sequences.longest,
        scale=scaling,
        window_size=(-1, 0),  # causal: the last query sees the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _piece_by_piece(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Packed,
    scaling: float,
    only: np.ndarray | None,
) -> torch.Tensor:
    layout = rows.layout
    mixed = query.new_empty(*query.shape[:2], value.shape[-1])
    bounds = layout.starts if only is None else np.searchsorted(only, layout.starts)
    for number, piece in enumerate(layout.pieces):
        first, last = int(bounds[number]), int(bounds[number + 1])
        if first == last:
            continue
        asked = query[first:last].transpose(0, 1)
        seen = [_joined(states, rows.runs[number]).transpose(0, 1) for states in (key, value)]
        if only is None and query.dtype == torch.float32 and query.shape[1] >= _MANY:
            found = _by_blocks(asked, *seen, rows.hidden, scaling)
        else:
            here = np.arange(first, last) if only is None else only[first:last]
            mask = _sight(piece.depth, (here - layout.starts[number]).tobytes(), len(piece.ids))
            found = _fused(asked, *seen, mask, scaling)
        mixed[first:last] = found.transpose(0, 1)
    return mixed


def _joined(states: torch.Tensor, runs: list[slice]) -> torch.Tensor:
    return states[runs[0]] if len(runs) == 1 else torch.cat([states[run] for run in runs])


def _by_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The same as `_fused` for the last tokens of a row, in three quarters of its time for rows of some hundred tokens.

    A block of queries multiplies the keys up to its own last one alone; torch's kernel multiplies them all. In 16 bits
    it would round the products, which the kernel does not.
    """
    heads, count, channels = query.shape
    groups = heads // key.shape[0]
    before, longest = key.shape[1] - count, hidden.shape[1] - _BLOCK
    found = []
    for part in query.split(_BLOCK, dim=1):
        asked, until = part.shape[1], before + part.shape[1]
        ahead = hidden[:asked, longest - before : longest + asked].expand(groups, -1, -1).reshape(-1, until)
        together = part.reshape(-1, groups * asked, channels)  # heads that share keys
        weights = torch.baddbmm(ahead, together, key[:, :until].transpose(1, 2), alpha=scaling).softmax(-1)
        found.append((weights @ value[:, :until]).view(heads, asked, -1))
        before = until
    return torch.cat(found, dim=1) if len(found) > 1 else found[0]


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    batch = (states[None] for states in (query, key, value))
    grouped = query.shape[0] != key.shape[0]
    return nn.functional.scaled_dot_product_attention(*batch, attn_mask=mask, scale=scaling, enable_gqa=grouped)[0]


@lru_cache(maxsize=256)
def _sight(before: int, within: bytes, length: int) -> torch.Tensor:
    """Which of `before + length` tokens each query sees, given its place within the piece: bool (queries, tokens)."""
    place = torch.from_numpy(np.frombuffer(within, np.int64).copy()) + before
    return torch.arange(before + length) <= place[:, None]


def register() -> None:
    """Make it known to transformers; again is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _interface)
