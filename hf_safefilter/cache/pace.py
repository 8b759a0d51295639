"""How much work to do between two writes: pieces that take some seconds each, judged by the time of earlier pieces."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

_LEAST = 16  # rows: enough to fill a batch and to measure its speed


class Pace:
    """Cuts rows into pieces of about `seconds` of work."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rate = 0.0  # size processed a second

    def pieces(self, sizes: np.ndarray, at_once: int = 0) -> Iterator[np.ndarray]:
        """Positions of rows in `sizes` (work of each row in any unit, `(n,)`), piece by piece, in ascending order.

        A piece has at least `at_once` rows, where there are so many.

        The largest rows come first, so that the rows of a piece are of similar size. The time until the next piece is
        asked for is taken as the time of its work.
        """
        order = np.argsort(-sizes, kind="stable")
        total = np.cumsum(sizes[order], dtype=float)
        start, processed = 0, 0.0
        while start < len(order):
            stop = int(np.searchsorted(total, processed + self._rate * self._seconds, side="right"))
            stop = min(max(stop, start + max(_LEAST, at_once)), len(order))
            began = time.perf_counter()
            yield np.sort(order[start:stop])
            self._rate = (total[stop - 1] - processed) / max(time.perf_counter() - began, 1e-6)
            start, processed = stop, total[stop - 1]
