"""Nearest references: is a row among harmful answers or among refusals, and which ones?"""

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

    The ids of the nearest unsafe rows are kept beside the score, so that a person can see why:
    `ReferenceIndex.rows("unsafe")` has their texts.

    Args:
        references: the index, or its digest.
        layer: where rows and references were read.
        k: neighbours on each side.

    Raises:
        MissingError: references or layer not there.
        OptionError: `k` larger than either side.
    """

    METHOD: ClassVar[str] = "nearest"
    MEASURES: ClassVar[str] = "the k nearest unsafe references against the k nearest safe ones; says which"

    _: KW_ONLY
    k: int = DEFAULT_K
    algorithm: int = field(default=1, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there are `k` references on each side."""
        for side in SIDES:
            check_count("k", self.k, index.counts[side], f"{side} references")

    def produces(self) -> tuple[str, ...]:
        """`nearest_score` and `nearest_unsafe`."""
        return (*ReferenceScore.produces(self), NEAREST_UNSAFE)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `nearest`; with fewer neighbours where a side has fewer rows."""
        return nearest(rows, unsafe, safe, min(DEFAULT_K, len(unsafe), len(safe)))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,) and strings (n, k)."""
        index = self.index
        unsafe, safe = (index.index(self.layer, side) for side in SIDES)
        # Position -1 is the empty id. Objects, not fixed-width text: a reference in place of 128 bytes a neighbour.
        ids = np.array([*(row.row_id for row in index.rows("unsafe")), ""], dtype=object)

        def one_piece(piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            near, places = search(unsafe, piece, self.k)
            return near.mean(axis=1) - search(safe, piece, self.k)[0].mean(axis=1), ids[places]

        scores, nearest = zip(*by_piece(self.vectors(batch), one_piece), strict=True)
        return dict(zip(self.produces(), (np.concatenate(scores), np.concatenate(nearest)), strict=True))


def nearest(rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, k: int = DEFAULT_K) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d), in the widest dtype given; (n,)."""
    check_count("k", k, min(len(unsafe), len(safe)), "references on the smaller side")
    directions = unit(rows)
    return mean_of_largest(directions @ unit(unsafe).T, k) - mean_of_largest(directions @ unit(safe).T, k)
