"""Work on many vectors, piece by piece, on every core, about as fast as they can be read from memory.

Vectors are stored as float16, which NumPy multiplies very slowly. A piece is small enough that its float32 copy stays
in a core's cache while it is used, so the whole column is never widened. The threads are Python's own: those of OpenMP
(torch, FAISS) do not survive a fork, and `Dataset.map(num_proc=...)` forks by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np

PIECE = 512
"""Largest number of rows in a piece."""

_NUMBERS = PIECE * 1024  # about the largest number of values in a piece: 2 MB of float32 stay in a core's cache

Result = TypeVar("Result")


def by_piece(vectors: np.ndarray, work: Callable[[np.ndarray], Result]) -> list[Result]:
    """The results of `work` on consecutive pieces of `vectors` (n, d), each widened to at least float32.

    `work` is called at least once, with an empty piece if there are no rows, so that results can be concatenated.
    """
    step = max(64, min(PIECE, _NUMBERS // max(1, vectors.shape[1])))

    def work_from(start: int) -> Result:
        with np.errstate(over="ignore", invalid="ignore"):  # rows with infinities become NaN, so no warning is needed
            return work(widen(vectors[start : start + step]))

    return list(_threads(os.getpid()).map(work_from, range(0, max(len(vectors), 1), step)))


def widen(values: np.ndarray) -> np.ndarray:
    """The values as float64 if they are float64, else as float32."""
    return np.asarray(values, dtype=np.result_type(values, np.float32))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of `vectors` (n, d) scaled to length one; a row that is zero or not finite becomes NaN."""
    vectors = widen(vectors)
    return vectors / lengths(vectors)[:, None]


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length of each row (n,); NaN for a row that is zero or not finite, which so gets no score."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.vecdot(vectors, vectors)
        return np.sqrt(np.where((squared > 0) & np.isfinite(squared), squared, np.nan))


def mean_of_largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of the `count` largest entries of each row of `values` (n, m); NaN for a row that holds NaN."""
    return np.partition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :].mean(axis=1)


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    # The argument is the key of the cache: a forked child inherits the pool but none of its threads.
    return ThreadPoolExecutor(min(8, processors()), thread_name_prefix="safefilter")


def processors() -> int:
    """Number of processors this process may use; a scheduler may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
