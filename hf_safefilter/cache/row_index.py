"""Where rows are stored: 64 bits of a row's id -> part and row. 16 bytes a row, in sorted runs, merged as they grow.

A location may be wrong (two ids share 64 bits, or a part was altered): the caller compares the whole id there.
"""

from __future__ import annotations

import numpy as np

UNKNOWN = -1
_ROW_BITS = 32


class RowIndex:
    """Sorted runs of keys and locations; a run is at least twice as long as the next one, so there are few of them.

    A location is one int64: the number of a part in the upper 32 bits, the row within the part in the lower 32 bits.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, parts: dict[int, np.ndarray]) -> None:
        """Add rows: part number -> packed ids, uint64 `(n, 2)`."""
        if not parts:
            return
        keys = np.concatenate([ids[:, 0] for ids in parts.values()])
        locations = np.concatenate([(number << _ROW_BITS) + np.arange(len(ids)) for number, ids in parts.items()])
        run = _sorted(keys, locations)
        while self._runs and len(self._runs[-1][0]) < 2 * len(run[0]):
            last = self._runs.pop()
            run = _sorted(*(np.concatenate(pair) for pair in zip(last, run, strict=True)))
        self._runs.append(run)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Locations of packed ids `(n, 2)`, int64 `(n,)`; `UNKNOWN` for ids that are in no part."""
        result = np.full(len(ids), UNKNOWN)
        for keys, locations in self._runs:
            at = np.minimum(np.searchsorted(keys, ids[:, 0]), len(keys) - 1)
            match = (keys[at] == ids[:, 0]) & (result == UNKNOWN)
            result[match] = locations[at[match]]
        return result

    def forget(self, part: int) -> None:
        """Remove all rows of a part that no longer exists."""
        masks = [part_of(locations) != part for _, locations in self._runs]
        runs = zip(self._runs, masks, strict=True)
        self._runs = [(keys[mask], locations[mask]) for (keys, locations), mask in runs if mask.any()]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)


def part_of(locations: np.ndarray) -> np.ndarray:
    """Numbers of the parts that the locations point to."""
    return locations >> _ROW_BITS


def row_of(locations: np.ndarray) -> np.ndarray:
    """Rows within their parts that the locations point to."""
    return locations & ((1 << _ROW_BITS) - 1)


def _sorted(keys: np.ndarray, locations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], locations[order]
