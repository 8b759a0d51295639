"""Attention over packed rows: an implementation for transformers' own attention interface.

Everything else in a decoder treats each token by itself, so a model whose attention comes from here reads rows of any
length in one sequence without padding, and shared prefixes only once. On a GPU of the Ampere generation or later this
is one call of torch's variable-length flash attention; on a CPU, one call per segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from hf_safefilter.model.prefix_tree import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "hf_safefilter_packed"
"""Name under which transformers knows this implementation."""

_HARMLESS = {"dropout", "is_causal", "position_ids", "position_embeddings", "use_cache", "output_attentions"}
_WIDEST = 256  # largest number of channels per head that flash attention supports
_MANY = 8  # number of heads from which `_by_blocks` keeps all processors busy
_BLOCK = 64  # queries multiplied together on a CPU, so that the products stay in its caches
_current: ContextVar[Packed] = ContextVar("packed rows")


class Unfit(Exception):
    """The model needs an attention feature that is missing here (caps, sinks, biases, short windows): pad its rows."""


class Packed:
    """Rows laid out for one forward pass: which keys each query sees."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._whole: dict[torch.device, Sequences] = {}

    @cached_property
    def runs(self) -> list[list[slice]]:
        """For each segment, the tokens that it sees, as runs of neighbouring indices."""
        cuts = [np.flatnonzero(np.diff(path) != 1) + 1 for path in self.layout.paths]
        parts = (np.split(path, cut) for path, cut in zip(self.layout.paths, cuts, strict=True))
        return [[slice(int(run[0]), int(run[-1]) + 1) for run in path] for path in parts]

    @cached_property
    def causal_mask(self) -> torch.Tensor:
        """Added to the products, it hides later tokens: float32 `(_BLOCK, longest + _BLOCK)`, -inf or 0.

        Queries from the n-th token of a row on use the columns from `longest - n` on.
        """
        longest = max(map(len, self.layout.paths))
        return torch.full((_BLOCK, longest + _BLOCK), -torch.inf).triu(longest + 1)

    def whole(self, device: torch.device) -> Sequences:
        """For flash attention: one query sequence per segment."""
        if device not in self._whole:
            lengths = np.diff(self.layout.starts)
            shared = any(segment.parent >= 0 for segment in self.layout.segments)
            self._whole[device] = Sequences.of(lengths, self.layout.paths, device, gather=shared)
        return self._whole[device]

    def at(self, indices: np.ndarray, device: torch.device) -> Sequences:
        """For flash attention: a query sequence of one token for each of the token `indices`."""
        visible = [self.layout.seen_from(index) for index in indices]
        return Sequences.of(np.ones(len(indices), int), visible, device)


class Sequences:
    """The arguments of the variable-length kernel, on the device.

    Args:
        bounds: Cumulative lengths of the query sequences and of the key sequences, each int32 `(sequences + 1,)`.
        longest: Length of the longest query sequence and of the longest key sequence.
        gather: Indices of the keys, one sequence after another; None if the keys already lie in that order.
    """

    def __init__(
        self, bounds: tuple[torch.Tensor, torch.Tensor], longest: tuple[int, int], gather: torch.Tensor | None
    ) -> None:
        self.bounds, self.longest, self.gather = bounds, longest, gather

    @classmethod
    def of(cls, queries: np.ndarray, visible: list[np.ndarray], device: torch.device, gather: bool = True) -> Sequences:
        """From the number of queries of each sequence, and the indices of the keys that it sees."""
        keys = np.array([len(indices) for indices in visible])
        bounds = _cumulative(queries, device), _cumulative(keys, device)
        indices = on(device, np.concatenate(visible)) if gather else None
        return cls(bounds, (int(queries.max()), int(keys.max())), indices)


def _cumulative(lengths: np.ndarray, device: torch.device) -> torch.Tensor:
    return on(device, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def on(device: torch.device, values: np.ndarray) -> torch.Tensor:
    """`values` on `device`, without waiting for the work that the device has queued."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def attending(model: PreTrainedModel, rows: Packed) -> Iterator[None]:
    """Inside the block, the attention of `model` is that of the packed `rows`."""
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
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: `(1, heads, tokens, channels)` -> `(1, tokens, heads, channels)`."""
    rows = _current.get()
    needed = sorted(name for name, option in options.items() if option is not None and name not in _HARMLESS)
    if needed or attention_mask is not None or options.get("is_causal") is False or options.get("dropout"):
        raise Unfit(f"{type(module).__name__} needs {', '.join(needed) or 'a mask of its own'}")
    if sliding_window is not None and sliding_window < max(map(len, rows.layout.paths)):
        raise Unfit(f"a row is longer than the window of {sliding_window} tokens")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise Unfit(f"{type(module).__name__} attends to more than these rows")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return attend(query, key, value, rows, scaling)[None], None


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
        query: `(tokens, heads, channels)`; with `only`, one query for each of its indices.
        key: `(tokens, key heads, channels)`; there may be fewer key heads than heads.
        value: `(tokens, key heads, channels)`.
        rows: The rows: which tokens belong together.
        scaling: Factor of the products of queries and keys.
        only: Sorted token indices of the queries; None: every token is a query.

    Returns:
        `(queries, heads, channels)`.
    """
    device = query.device
    if device.type == "cpu":
        return _by_segment(query, key, value, rows, scaling, only)
    return _in_one_call(query, key, value, rows.whole(device) if only is None else rows.at(only, device), scaling)


def _in_one_call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if not (query.shape[-1] == value.shape[-1] <= _WIDEST):
        raise Unfit(f"flash attention supports heads of up to {_WIDEST} channels, as many in values as in queries")
    if sequences.gather is not None:
        key, value = key[sequences.gather], value[sequences.gather]
    mixed = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        *sequences.bounds,
        *sequences.longest,
        scale=scaling,
        window_size=(-1, 0),  # causal: the last query sees the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("torch.Tensor", mixed)  # a tuple is returned only to callers that ask for further outputs


def _by_segment(
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
    for number, segment in enumerate(layout.segments):
        first, last = int(bounds[number]), int(bounds[number + 1])
        if first == last:
            continue
        queries = query[first:last].transpose(0, 1)
        keys, values = (_joined(states, rows.runs[number]).transpose(0, 1) for states in (key, value))
        if only is None and query.dtype == torch.float32 and query.shape[1] >= _MANY:
            output = _by_blocks(queries, keys, values, rows.causal_mask, scaling)
        else:
            indices = np.arange(first, last) if only is None else only[first:last]
            mask = _visible(segment.depth, (indices - layout.starts[number]).tobytes(), len(segment.ids))
            output = _fused(queries, keys, values, mask, scaling)
        mixed[first:last] = output.transpose(0, 1)
    return mixed


def _joined(states: torch.Tensor, runs: list[slice]) -> torch.Tensor:
    return states[runs[0]] if len(runs) == 1 else torch.cat([states[run] for run in runs])


def _by_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal_mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The same as `_fused` for the last tokens of a row, in three quarters of its time for rows of some hundred tokens.

    A block of queries is multiplied only by the keys up to its own last token; torch's kernel multiplies all of them.
    This would round the products in 16 bits, which the kernel does not.
    """
    heads, count, channels = query.shape
    groups = heads // key.shape[0]
    before, longest = key.shape[1] - count, causal_mask.shape[1] - _BLOCK
    outputs = []
    for block in torch.split(query, _BLOCK, dim=1):
        size = block.shape[1]
        stop = before + size
        mask = causal_mask[:size, longest - before : longest + size].expand(groups, -1, -1).reshape(-1, stop)
        grouped = block.reshape(-1, groups * size, channels)  # heads that share keys
        weights = torch.baddbmm(mask, grouped, key[:, :stop].transpose(1, 2), alpha=scaling).softmax(-1)
        outputs.append((weights @ value[:, :stop]).view(heads, size, -1))
        before = stop
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    grouped = query.shape[0] != key.shape[0]
    return nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, scale=scaling, enable_gqa=grouped
    )[0]


@lru_cache(maxsize=256)
def _visible(before: int, queries: bytes, length: int) -> torch.Tensor:
    """Which of a segment's `before + length` tokens each query sees: bool `(queries, tokens)`.

    Args:
        before: Number of tokens in front of the segment.
        queries: Positions of the queries in the segment, the bytes of an int64 array.
        length: Number of tokens of the segment.
    """
    positions = torch.from_numpy(np.frombuffer(queries, np.int64).copy()) + before
    return torch.arange(before + length) <= positions[:, None]


def register() -> None:
    """Make the implementation known to transformers; registering it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _interface)
