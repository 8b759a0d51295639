"""Work on many vectors a piece at a time, on every core, at the speed of memory.

Vectors are stored as float16, in which NumPy cannot multiply at any speed. A piece is small enough that its float32
copy stays in a core's cache until it has been used, so the whole column is never widened. The threads are Python's
own: those of OpenMP (torch, FAISS) do not survive a fork, and `Dataset.map(num_proc=...)` forks by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np

PIECE = 512
"""Most rows of a piece ..."""
_NUMBERS = PIECE * 1024  # ... and about its most numbers: 2 MB of float32 stay in a core's cache

Result = TypeVar("Result")


def by_piece(vectors: np.ndarray, work: Callable[[np.ndarray], Result]) -> list[Result]:
    """`work` on consecutive pieces of `vectors` (n, d), each widened to float32 or more; results in order.

    Called at least once, with an empty piece where there are no rows, so that results can always be concatenated.
    """

    step = max(64, min(PIECE, _NUMBERS // max(1, vectors.shape[1])))

    def one(start: int) -> Result:
        with np.errstate(over="ignore", invalid="ignore"):  # rows with infinities end as NaN, which says it all
            return work(widen(vectors[start : start + step]))

    return list(_threads(os.getpid()).map(one, range(0, max(len(vectors), 1), step)))


def widen(values: np.ndarray) -> np.ndarray:
    """float64 stays, everything else becomes float32."""
    return np.asarray(values, dtype=np.result_type(values, np.float32))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of `vectors` (n, d) scaled to length one; a row that is zero or not finite becomes NaN."""
    vectors = widen(vectors)
    return vectors / lengths(vectors)[:, None]


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length of each row (n,); NaN where it is zero or not finite, so that nothing is scored by accident."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.vecdot(vectors, vectors)
        return np.sqrt(np.where((squared > 0) & np.isfinite(squared), squared, np.nan))


def mean_of_largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of the `count` largest entries of each row of `values` (n, m); NaN for a row that holds NaN."""
    return np.partition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :].mean(axis=1)


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    # Keyed by process: a forked child inherits the pool but none of its threads.
    return ThreadPoolExecutor(min(8, processors()), thread_name_prefix="safefilter")


def processors() -> int:
    """How many this process may use, which under a scheduler is less than what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
