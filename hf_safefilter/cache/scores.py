"""Scores that cost a pass over a model, row by row: kept as vectors are, so that a killed job goes on here too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hf_safefilter.cache.lookup import recall
from hf_safefilter.cache.read_rows import Reading
from hf_safefilter.cache.space import Space
from hf_safefilter.data.conversations import Conversation, row_id

SCORE = "score"
"""What stands in place of a layer."""


def recall_scores(
    space: Space, found: Sequence[Conversation], score: Callable[[list[Conversation]], Reading]
) -> Reading:
    """Scores that were computed before, and the others from `score`, piece by piece; equal rows once.

    Args:
        space: what decides a score, but for the row.
        found: the rows; one with a reason is left alone.
        score: of rows without a reason: a reading of the one layer `SCORE`, float32 `(n, 1)`.
    """
    reading = Reading.blank([one.reason for one in found], [SCORE], 1, np.float32)
    ids = [row_id(one) for one in found]
    sizes = [sum(len(content) for _, content in one.messages) for one in found]
    recall(space, reading, ids, sizes, lambda rows, _: score([found[row] for row in rows]))
    return reading


def as_reading(scores: np.ndarray, reasons: Sequence[str], truncated: np.ndarray | None = None) -> Reading:
    """Scores `(n,)` in the form of `recall_scores`."""
    cut = np.zeros(len(scores), bool) if truncated is None else truncated
    return Reading({SCORE: scores.astype(np.float32)[:, None]}, cut, np.array(reasons, dtype=object))
