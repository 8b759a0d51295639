"""Where rows lie: 64 bits of a row's id -> part and row. 16 bytes a row, in sorted runs that are merged as they grow.

It may be wrong (ids that share 64 bits, a part that was altered): whoever follows it compares the whole id there.
"""

from __future__ import annotations

import numpy as np

UNKNOWN = -1
_ROW_BITS = 32


class Index:
    """Sorted runs of keys and places; a run is at least twice as long as the one after it, so there are few."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, parts: dict[int, np.ndarray]) -> None:
        """Add rows: part number -> packed ids, uint64 `(n, 2)`."""
        if not parts:
            return
        keys = np.concatenate([ids[:, 0] for ids in parts.values()])
        places = np.concatenate([(number << _ROW_BITS) + np.arange(len(ids)) for number, ids in parts.items()])
        run = _sorted(keys, places)
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            last = self._runs.pop()
            run = _sorted(*(np.concatenate(pair) for pair in zip(last, run, strict=True)))
        self._runs.append(run)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Places of packed ids `(n, 2)`, int64 `(n,)`; `UNKNOWN` for those that no part has."""
        found = np.full(len(ids), UNKNOWN)
        for keys, places in self._runs:
            at = np.minimum(np.searchsorted(keys, ids[:, 0]), len(keys) - 1)
            there = (keys[at] == ids[:, 0]) & (found == UNKNOWN)
            found[there] = places[at[there]]
        return found

    def forget(self, part: int) -> None:
        """Drop all rows of a part that is gone."""
        kept = [(keys, places, part_of(places) != part) for keys, places in self._runs]
        self._runs = [(keys[rest], places[rest]) for keys, places, rest in kept if rest.any()]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)


def part_of(places: np.ndarray) -> np.ndarray:
    """Part numbers."""
    return places >> _ROW_BITS


def row_of(places: np.ndarray) -> np.ndarray:
    """Rows within the part."""
    return places & ((1 << _ROW_BITS) - 1)


def _sorted(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], places[order]
