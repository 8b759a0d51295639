"""Nearest references: is a row more similar to harmful answers or to refusals, and to which of them?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.vectors import by_piece, mean_of_largest, unit
from hf_safefilter.references import SIDES, ReferenceIndex
from hf_safefilter.references.flat import search
from hf_safefilter.references.index import check_count
from hf_safefilter.scores.base import ReferenceScore

DEFAULT_K = 5

NEAREST_UNSAFE = "nearest_unsafe"
"""Ids of the `k` nearest unsafe references, nearest first (strings, (n, k)); "" where a row cannot be scored."""


@dataclass(frozen=True, slots=True)
class NearestScore(ReferenceScore):
    """Mean of the `k` largest cosines to the unsafe references minus the same to the safe ones, in [-2, 2].

    The ids of the nearest unsafe rows are stored beside the score as an explanation; `ReferenceIndex.rows("unsafe")`
    has their texts.

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read.
        k: Number of neighbours on each side.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        OptionError: `k` is larger than the number of rows on one side.
    """

    METHOD: ClassVar[str] = "nearest"
    MEASURES: ClassVar[str] = "the k nearest unsafe references against the k nearest safe ones; says which"

    _: KW_ONLY
    k: int = DEFAULT_K
    algorithm: int = field(default=1, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there are at least `k` references on each side."""
        for side in SIDES:
            check_count("k", self.k, index.counts[side], f"{side} references")

    def produces(self) -> tuple[str, ...]:
        """`nearest_score` and `nearest_unsafe`."""
        return (*ReferenceScore.produces(self), NEAREST_UNSAFE)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `nearest`; fewer neighbours are used if a side has fewer rows."""
        return nearest(rows, unsafe, safe, min(DEFAULT_K, len(unsafe), len(safe)))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,) and strings (n, k)."""
        index = self.index
        unsafe, safe = (index.index(self.layer, side) for side in SIDES)
        # Index -1 selects the empty id. An array of objects needs 8 bytes for a neighbour, fixed-width text 128.
        ids = np.array([*(row.row_id for row in index.rows("unsafe")), ""], dtype=object)

        def score_piece(piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            similarity, position = search(unsafe, piece, self.k)
            return similarity.mean(axis=1) - search(safe, piece, self.k)[0].mean(axis=1), ids[position]

        scores, nearest = zip(*by_piece(self.vectors(batch), score_piece), strict=True)
        return dict(zip(self.produces(), (np.concatenate(scores), np.concatenate(nearest)), strict=True))


def nearest(rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, k: int = DEFAULT_K) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d), in the widest dtype passed; (n,)."""
    check_count("k", k, min(len(unsafe), len(safe)), "references on the smaller side")
    directions = unit(rows)
    return mean_of_largest(directions @ unit(unsafe).T, k) - mean_of_largest(directions @ unit(safe).T, k)
