"""Rows that begin alike, as a tree of segments: a shared prefix is stored, and computed, once.

A template's header, a system prompt, two answers to one prompt: the rows differ only in what comes after these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 8  # tokens: sharing fewer costs more than it saves


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that follow those of the segment `parent`.

    Attributes:
        parent: Number of the segment before this one; -1 where a row begins.
        depth: Number of tokens before this segment in its rows.
        ids: Token ids, int32 `(n,)`.
    """

    parent: int
    depth: int
    ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The segments of some rows one after another, as a model is given them.

    Attributes:
        segments: All segments, parents before children.
        ends: For each row, the number of its last segment.
        starts: int64 `(segments + 1,)`: index of each segment's first token among all tokens, then the token count.
        paths: For each segment, the indices among all tokens of the row's tokens up to the segment's end.
    """

    segments: list[Segment]
    ends: list[int]
    starts: np.ndarray
    paths: list[np.ndarray]

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Layout:
        """The layout of rows of token ids, which are sorted by `order`."""
        segments, ends = grown(rows)
        starts = np.concatenate([[0], np.cumsum([len(segment.ids) for segment in segments])])
        paths: list[np.ndarray] = []
        for number, segment in enumerate(segments):
            own = np.arange(starts[number], starts[number + 1])
            paths.append(own if segment.parent < 0 else np.concatenate([paths[segment.parent], own]))
        return cls(segments, ends, starts, paths)

    @property
    def ids(self) -> np.ndarray:
        """Token ids, int64 `(tokens,)`."""
        return np.concatenate([segment.ids for segment in self.segments]).astype(np.int64)

    @property
    def positions(self) -> np.ndarray:
        """Position of each token in its row, int64 `(tokens,)`."""
        return np.concatenate([np.arange(len(segment.ids)) + segment.depth for segment in self.segments])

    def seen_from(self, index: int) -> np.ndarray:
        """Indices of the tokens that the token at `index` sees: those before it in its row, and itself."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.paths[number][: self.segments[number].depth + index - int(self.starts[number]) + 1]


def order(rows: Sequence[np.ndarray]) -> list[int]:
    """Numbers of the rows, sorted so that rows that begin alike are neighbours."""
    return sorted(range(len(rows)), key=lambda row: rows[row].tobytes())


def grown(rows: Sequence[np.ndarray]) -> tuple[list[Segment], list[int]]:
    """The tree of `rows`, which are sorted by `order`: its segments, and for each row the number of its last one."""
    segments: list[Segment] = []
    ends = [-1] * len(rows)

    def grow(members: list[int], depth: int, parent: int) -> None:
        first, last = rows[members[0]], rows[members[-1]]
        common = _common(first, last)
        if common == len(first) == len(last):  # one row, or equal ones that are read at different positions
            if depth < len(first):
                segments.append(Segment(parent, depth, first[depth:]))
                parent = len(segments) - 1
            for row in members:
                ends[row] = parent
            return
        if common - depth >= _LEAST:
            segments.append(Segment(parent, depth, first[depth:common]))
            parent, depth = len(segments) - 1, common
        groups: dict[bytes, list[int]] = {}
        for row in members:
            groups.setdefault(rows[row][depth : depth + _LEAST].tobytes(), []).append(row)
        for group in groups.values():
            grow(group, depth, parent)

    if rows:
        grow(list(range(len(rows))), 0, -1)
    return segments, ends


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Number of tokens that two rows have in common at their beginning."""
    shorter = min(len(first), len(second))
    different = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(different[0]) if len(different) else shorter
