"""LargestRank: the largest of several ranks, so that one score alone can call a row dangerous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import SCORE_SUFFIX, decided_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.scores.ranks import RankScore


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
        shares = self.shares(batch)
        largest: np.ndarray = shares.max(axis=0)  # NaN wins
        methods = [column.removesuffix(SCORE_SUFFIX) for column in self.needs()]
        highest = np.nan_to_num(shares).argmax(axis=0)
        by = np.array(["" if np.isnan(value) else methods[at] for value, at in zip(largest, highest, strict=True)])
        return dict(zip(self.produces(), (largest.astype(np.float32), by), strict=True))
