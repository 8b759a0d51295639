"""Rows that begin alike, as a tree of pieces: a common beginning is held, and computed, once.

A template's head, a system prompt, two answers to one prompt: what comes after them differs, they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The pieces of some rows one after another, as a model is given them.

    Attributes:
        pieces: parents before children.
        ends: for each row the piece that it ends with.
        starts: int64 (pieces + 1,): where each piece begins among all tokens, and where the last one ends.
        paths: for each piece the places, among all tokens, of the row's tokens from its beginning to the piece's end.
    """

    pieces: list[Piece]
    ends: list[int]
    starts: np.ndarray
    paths: list[np.ndarray]

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Layout:
        """Lay out the ids of rows, sorted by `order`."""
        pieces, ends = grown(rows)
        starts = np.concatenate([[0], np.cumsum([len(piece.ids) for piece in pieces])])
        paths: list[np.ndarray] = []
        for number, piece in enumerate(pieces):
            own = np.arange(starts[number], starts[number + 1])
            paths.append(own if piece.parent < 0 else np.concatenate([paths[piece.parent], own]))
        return cls(pieces, ends, starts, paths)

    @property
    def ids(self) -> np.ndarray:
        """Token ids, int64 (tokens,)."""
        return np.concatenate([piece.ids for piece in self.pieces]).astype(np.int64)

    @property
    def positions(self) -> np.ndarray:
        """Place of each token in its row, int64 (tokens,)."""
        return np.concatenate([np.arange(len(piece.ids)) + piece.depth for piece in self.pieces])

    def seen_from(self, place: int) -> np.ndarray:
        """Places of the tokens that the one at `place` sees: those on the way to it, and itself."""
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.paths[number][: self.pieces[number].depth + place - int(self.starts[number]) + 1]


def order(rows: Sequence[np.ndarray]) -> list[int]:
    """Numbers of the rows, those that begin alike next to each other."""
    return sorted(range(len(rows)), key=lambda row: rows[row].tobytes())


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


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two rows begin with alike."""
    least = min(len(one), len(other))
    different = np.flatnonzero(one[:least] != other[:least])
    return int(different[0]) if len(different) else least
