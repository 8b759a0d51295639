"""RankAverage: the average of several scores, each taken as a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.scores.ranks import RankScore


@dataclass(frozen=True, slots=True)
class RankAverage(RankScore):
    """Mean rank of a row over several scores: for scores that look for the same danger, whose errors cancel out.

    Args:
        ranks: What `fit_ranks` returned, or its digest.
    """

    METHOD: ClassVar[str] = "rank_average"
    MEASURES: ClassVar[str] = "mean rank over several scores"

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,)."""
        return {self.produces()[0]: np.mean(self.shares(batch), axis=0).astype(np.float32)}
