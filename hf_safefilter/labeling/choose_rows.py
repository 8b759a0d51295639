"""Which rows to label next: those whose label is most in doubt, and far from each other and from what is labelled."""

from __future__ import annotations

import numpy as np

TEMPERATURE = 0.5
"""Deviations of the score within which a row is in doubt. With it, on answers to XSTest prompts, doubt times spread was
as good as doubt alone or better, and spread alone no better than chance."""


def doubts(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How open the label of each row is, in [0, 1]: 1 on the boundary, 0 far from it or without a score.

    The boundary of references is not that of the rows. It lies half way between the mean scores of the rows labelled
    unsafe and safe; in the middle of all rows before the first label; and at 0 while all labels are of one kind.

    Args:
        scores: Scores of a probe, in deviations, float (n,); NaN where a row could not be read.
        truth: 1 unsafe, 0 safe, NaN not labelled, float (n,).
    """
    scores = scores.astype(np.float64)
    known = np.isfinite(scores)
    unsafe, safe = scores[known & (truth == 1)], scores[known & (truth == 0)]
    middle = 0.0
    if len(unsafe) and len(safe):
        middle = (unsafe.mean() + safe.mean()) / 2
    elif not len(unsafe) and not len(safe) and known.any():
        middle = float(np.median(scores[known]))
    half = np.clip(np.where(known, scores - middle, np.inf) / (2 * TEMPERATURE), -300, 300)
    return np.where(known, 1 / np.cosh(half) ** 2, 0.0)  # 4 p (1 - p) of a logistic curve


def next_rows(doubt: np.ndarray, vectors: np.ndarray, asked: np.ndarray, count: int = 10) -> np.ndarray:
    """The rows to ask for, one after the other: the largest doubt times distance to the nearest row asked for.

    It is the farthest-first traversal of k-center, weighted, in standardised coordinates. A copy of a row that was
    asked for is never chosen, nor is a row without doubt. By the square of the distance, fifty labels of two files were
    worth .004 and .005 less AUROC, and of a third .001 more: hardly told apart.

    Args:
        doubt: What `doubts` gave, (n,).
        vectors: A vector for each row, (n, d).
        asked: Which rows were asked for before, bool (n,).
        count: Number of rows to choose.

    Returns:
        Indices of the rows, int (m,) with m <= `count`, in the order in which to ask.
    """
    points = _standardised(vectors)
    squares = np.square(points).sum(axis=1)
    nearest = np.full(len(points), np.inf)
    for row in np.flatnonzero(asked).tolist():
        nearest = _nearer(nearest, points, squares, row)
    chosen: list[int] = []
    left = ~asked & (doubt > 0)
    while len(chosen) < count and left.any():
        # before the first row doubt alone decides
        worth = np.where(left, doubt * np.where(np.isinf(nearest), 1.0, np.sqrt(nearest)), 0.0)
        row = int(np.argmax(worth))
        if not worth[row] > 0:
            break
        chosen.append(row)
        left[row] = False
        nearest = _nearer(nearest, points, squares, row)
    return np.array(chosen, dtype=np.int64)


def _standardised(vectors: np.ndarray) -> np.ndarray:
    values = np.asarray(vectors, dtype=np.float32)
    if not len(values):
        return values
    deviation = values.std(axis=0)
    least = max(1e-3 * float(np.median(deviation)), 1e-12)  # a coordinate that hardly varies is not blown up further
    return (values - values.mean(axis=0)) / np.maximum(deviation, least)


def _nearer(nearest: np.ndarray, points: np.ndarray, squares: np.ndarray, row: int) -> np.ndarray:
    """Squared distance of each point to the nearest of those so far and `row`."""
    distance = np.maximum(squares + squares[row] - 2 * points @ points[row], 0.0)
    distance[distance <= 1e-6 * squares.mean()] = 0.0  # copies differ by rounding
    return np.minimum(nearest, distance)
