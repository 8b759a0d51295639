"""What the largest of many windows owes to chance, and the score of a row without it."""

from __future__ import annotations

import numpy as np

from hf_safefilter.data.ragged import Ragged
from hf_safefilter.scores.base import answer_means, answers_of


def noise_of(scores: np.ndarray, rows: np.ndarray) -> float:
    """Standard deviation of the scores of windows (m,) about the mean of their row; 0 where no row has two windows.

    Of examples that a probe was fitted to it is a little smaller than of other rows, the more so the fewer they are.

    Args:
        scores: Finite scores.
        rows: Number of the row of each.
    """
    rows = np.unique(rows, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(rows)
    apart = scores - (np.bincount(rows, scores) / counts)[rows]
    freedom = (counts - 1).sum()
    return float(np.sqrt(np.square(apart).sum() / freedom)) if freedom else 0.0


def largest_by_chance(counts: np.ndarray) -> np.ndarray:
    """Expected largest of each of `counts` standard normal numbers, by Blom's formula (1958); 0 for one number."""
    from scipy.special import ndtri

    expected: np.ndarray = ndtri((counts - 3 / 8) / (counts + 1 / 4))
    return np.where(counts > 1, expected, 0.0)


def part_and_whole(scores: Ragged, spans: Ragged | None, noise: float) -> Ragged:
    """For each window the mean of its score, less what is chance, and of its answer's mean, float32 (m,).

    The largest of n scores grows with n, even if the windows differ by noise alone: long answers would look dangerous
    for being long. So of each score that is subtracted which the noise in the n windows of its answer is expected to
    reach. Other turns change nothing.

    Args:
        scores: A score for each window of each row.
        spans: What was read of each row; None if nothing is known but the row, which then is one answer.
        noise: Standard deviation of the scores of windows about the mean of their row; see `noise_of`.
    """
    answer = answers_of(scores, spans)
    by_chance = largest_by_chance(np.bincount(answer)[answer])
    values = (scores.values - noise * by_chance + answer_means(scores, spans)) / 2
    return Ragged(values.astype(np.float32), scores.offsets)
