"""What a pass over the model found for each row, from the row cache where it is known."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from hf_safefilter import cache
from hf_safefilter.data.conversations import Conversation

logger = logging.getLogger(__name__)


def recalled(
    method: str,
    space: cache.Space,
    rows: Sequence[Conversation],
    score: Callable[[Sequence[Conversation]], tuple[np.ndarray, list[str]]],
) -> tuple[np.ndarray, np.ndarray]:
    """The score of each row, float32 (n,), and why it has none, strings (n,), "" where it has one.

    The rows without a score are counted in the log, for each reason.

    Args:
        method: Name of the score.
        space: Everything that decides a score, except the row.
        rows: The rows.
        score: Computes the scores and the reasons of rows that are not cached.
    """
    if rows and cache.enabled():
        scores = cache.recall_scores(space, rows, lambda new: cache.one_score_each(*score(new)))
    else:
        scores = cache.one_score_each(*score(rows))
    for reason, count in Counter(filter(None, scores.reasons)).items():
        logger.warning("%d rows have no %s score: %s", count, method, reason)
    return scores.of(cache.SCORE).largest()[0], scores.reasons
