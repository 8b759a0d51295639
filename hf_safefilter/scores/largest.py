"""The largest of several scores, as ranks or as deviations, so that one of them alone can call a row dangerous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import SCORE_SUFFIX, decided_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.scores.ranks import Ranks, RankScore

LOWEST, QUARTILE = 0.05, 0.25
"""Quantiles of the rows that a deviation is measured by: most of the rows below the second are harmless in any set."""

_SHORTEST = 1e-3


@dataclass(frozen=True, slots=True)
class LargestRank(RankScore):
    """Largest rank of a row over several scores: for scores that look for unlike dangers, of which one is enough.

    Adds ``largest_rank_score``, and ``largest_rank_by``: the method that ranks the row highest, the first of several;
    "" where a score is NaN.

    Args:
        ranks: What `fit_ranks` returned, or its digest.
    """

    METHOD: ClassVar[str] = "largest_rank"
    MEASURES: ClassVar[str] = "largest rank over several scores"

    def produces(self) -> tuple[str, ...]:
        """The score column, and that of the method which decided."""
        return (super(LargestRank, self).produces()[0], decided_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,) and n strings."""
        values = self.shares(batch)
        largest: np.ndarray = values.max(axis=0)  # NaN wins
        methods = [column.removesuffix(SCORE_SUFFIX) for column in self.needs()]
        highest = np.nan_to_num(values).argmax(axis=0)
        by = np.array(["" if np.isnan(value) else methods[at] for value, at in zip(largest, highest, strict=True)])
        return dict(zip(self.produces(), (largest.astype(np.float32), by), strict=True))


@dataclass(frozen=True, slots=True)
class LargestDeviation(LargestRank):
    """Largest deviation of a row over several scores: for scores that look for unlike dangers, of which one is enough.

    A deviation is how far a score lies above the lower quartile of the fitted rows, in units of the distance between
    that quartile and the twentieth part that scores lowest. So rows are held to those that are harmless, as long as
    these are a quarter of the set. Ranks say the same of the top of every score; deviations say by which of them rows
    stand out at all: where one danger is there and another is not, the first decides.

    Adds ``largest_deviation_score``, and ``largest_deviation_by``: the method by which the row stands out most, the
    first of several; "" where a score is NaN.

    Args:
        ranks: What `fit_ranks` returned, or its digest.
    """

    METHOD: ClassVar[str] = "largest_deviation"
    MEASURES: ClassVar[str] = "largest deviation from the rows that score low, over several scores"

    def shares(self, batch: Batch) -> np.ndarray:
        """Deviation of each row in each score, float64 (scores, n)."""
        scores = self.scores(batch)
        scales = np.array([scale_of(fitted) for fitted in Ranks.of(self.ranks).sorted])
        return (scores - scales[:, :1]) / scales[:, 1:]


def scale_of(scores: np.ndarray) -> tuple[float, float]:
    """Lower quartile of sorted scores (n,), and the length of a deviation.

    Where the lowest scores are next to the same, as those of a guard that is sure may be, the length is at least a
    thousandth of the way to the highest score; where all are, it is 1.
    """
    lowest, quartile, highest = np.quantile(scores.astype(np.float64), [LOWEST, QUARTILE, 1])
    length = max(quartile - lowest, _SHORTEST * (highest - quartile))
    return float(quartile), float(length) if length > 0 else 1.0
