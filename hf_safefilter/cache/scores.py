"""Scores that need a pass over a model, row by row: cached as vectors are, so that a job that was killed can resume."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from hf_safefilter.cache.lookup import recall
from hf_safefilter.cache.row_vectors import Gathering, RowVectors
from hf_safefilter.cache.space import Space
from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.row_ids import row_id

SCORE = "score"
"""The layer under which scores are stored."""


def recall_scores(
    space: Space,
    rows: Sequence[Conversation],
    score: Callable[[list[Conversation]], RowVectors],
    *,
    passing: Collection[str] = (),
    at_once: int = 0,
) -> RowVectors:
    """Scores that were computed before, and the others from `score`, piece by piece; equal rows are scored once.

    Args:
        space: Everything that decides a score, except the row.
        rows: The rows; one that has a reason is not scored.
        score: Scores rows without a reason: the one layer `SCORE`, float32 `(scores, 1)`.
        passing: Reasons for want of a score that may not hold the next time; such rows are not stored.
        at_once: Number of rows that are scored at once, where there are so many.
    """
    target = Gathering([row.reason for row in rows], {SCORE: 1}, np.float32)
    ids, sizes = [row_id(row) for row in rows], [row.size for row in rows]

    def read(missing: list[int], _: list[Layer]) -> RowVectors:
        return score([rows[index] for index in missing])

    return recall(space, target, ids, sizes, read, passing=passing, at_once=at_once)


def one_score_each(scores: np.ndarray, reasons: Sequence[str], truncated: np.ndarray | None = None) -> RowVectors:
    """Scores `(n,)` in the form of `recall_scores`."""
    cut = np.zeros(len(scores), bool) if truncated is None else truncated
    return RowVectors.one_each(SCORE, scores.astype(np.float32), reasons, cut)
