"""How much work to do between two writes: pieces that take some seconds each, by what the pieces before took."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

_LEAST = 16  # rows: enough to fill a batch, and to measure by


class Pace:
    """Cuts rows into pieces of about `seconds` of work."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rate = 0.0  # sizes a second

    def pieces(self, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Positions of `sizes` (any unit of work a row, `(n,)`), in order; what is done with a piece is timed.

        The first piece holds the largest, and so on: rows of a piece are alike in size.
        """
        order = np.argsort(-sizes, kind="stable")
        total = np.cumsum(sizes[order], dtype=float)
        start, done = 0, 0.0
        while start < len(order):
            stop = int(np.searchsorted(total, done + self._rate * self._seconds, side="right"))
            stop = min(max(stop, start + _LEAST), len(order))
            begin = time.perf_counter()
            yield np.sort(order[start:stop])
            self._rate = (total[stop - 1] - done) / max(time.perf_counter() - begin, 1e-6)
            start, done = stop, total[stop - 1]
