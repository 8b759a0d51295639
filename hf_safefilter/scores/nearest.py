"""Nearest references: is a row more similar to harmful answers or to refusals, and to which of them?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import span_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.vectors import mean_of_largest, unit
from hf_safefilter.references import SIDES, ReferenceIndex
from hf_safefilter.references.flat import search
from hf_safefilter.references.index import check_count
from hf_safefilter.scores.base import ReferenceScore

DEFAULT_K = 5

NEAREST_UNSAFE = "nearest_unsafe"
"""Ids of the `k` unsafe references nearest to the span with the largest score, nearest first (strings, (n, k)); ""
where a row cannot be scored."""


@dataclass(frozen=True, slots=True)
class NearestScore(ReferenceScore):
    """Mean of the `k` largest cosines to the unsafe references minus the same to the safe ones, in [-2, 2].

    The ids of the unsafe rows nearest to the span with the largest score are stored beside it as an explanation;
    `ReferenceIndex.rows("unsafe")` has their texts.

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read.
        standardize: Compare in coordinates of mean 0 and deviation 1 among the references; False is the paper's form.
        pairs: Whether the rejected side of preference pairs has columns of its own.
        k: Number of neighbours on each side.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        OptionError: `k` is larger than the number of rows on one side.
    """

    METHOD: ClassVar[str] = "nearest"
    MEASURES: ClassVar[str] = "the k nearest unsafe references against the k nearest safe ones; says which"

    _: KW_ONLY
    k: int = DEFAULT_K
    algorithm: int = field(default=2, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there are at least `k` references on each side."""
        for side in SIDES:
            check_count("k", self.k, index.counts[side], f"{side} references")

    def produces(self) -> tuple[str, ...]:
        """The columns of every score of vectors, and `nearest_unsafe`."""
        return (*ReferenceScore.produces(self), NEAREST_UNSAFE)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `nearest`; fewer neighbours are used if a side has fewer rows."""
        return nearest(rows, unsafe, safe, min(DEFAULT_K, len(unsafe), len(safe)))

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """See `nearest`."""
        unsafe, safe = (search(self.neighbours(side), vectors, self.k)[0] for side in SIDES)
        return unsafe.mean(axis=1) - safe.mean(axis=1)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """The columns of every score of vectors, and strings (n, k)."""
        columns = ReferenceScore.compute(self, batch, rank)
        vectors, at = self.vectors(batch), np.asarray(columns[span_column(self.METHOD)])
        found = np.flatnonzero(at >= 0)
        ids = np.full((batch.n, self.k), "", dtype=object)
        if len(found):
            best = vectors.values[vectors.offsets[found] + at[found]]
            places = search(self.neighbours("unsafe"), np.ascontiguousarray(self.coordinates(best)), self.k)[1]
            names = np.array([row.row_id for row in self.index.rows("unsafe")], dtype=object)
            ids[found] = names[self.index.owners("unsafe")[places]]
        return columns | {NEAREST_UNSAFE: ids}


def nearest(rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, k: int = DEFAULT_K) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d), in the widest dtype passed; (n,)."""
    check_count("k", k, min(len(unsafe), len(safe)), "references on the smaller side")
    directions = unit(rows)
    return mean_of_largest(directions @ unit(unsafe).T, k) - mean_of_largest(directions @ unit(safe).T, k)
