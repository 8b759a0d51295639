"""A map of the rows: their vectors and those of the references in the plane that shows most of the rows' spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hf_safefilter.columns import EMBEDDING_PREFIX, embedding_column, span_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.decide.explanations import compared_at
from hf_safefilter.errors import SafefilterError
from hf_safefilter.references.coordinates import coordinates
from hf_safefilter.scores.ranks import RankScore

if TYPE_CHECKING:
    from hf_safefilter.review.row_columns import RowColumns
    from hf_safefilter.scores.base import Score

Scale: TypeAlias = Callable[[np.ndarray], np.ndarray]

_SAMPLE = 4096
"""Rows from which the axes are found; they lie at equal distances."""

_MOST_REFERENCES = 400
"""References drawn on each side; they lie at equal distances."""

_BATCH = 8192


@dataclass(frozen=True, slots=True, eq=False)
class RowMap:
    """Points in the plane of the two largest principal components.

    Attributes:
        rows: float32 (n, 2); NaN for a row without a vector.
        unsafe: Unsafe references, float32 (m, 2); none where the score has no references.
        safe: Safe ones.
        share: Share of the variance of the rows that the plane shows.
        column: The column of the vectors.
    """

    rows: np.ndarray
    unsafe: np.ndarray
    safe: np.ndarray
    share: float
    column: str


def row_map(rows: RowColumns) -> RowMap | None:
    """The map of scored rows; None if they have no vectors, or too few.

    Of each row the vector of its deciding span is shown, in the coordinates in which the score compares it with the
    references. The axes are principal components of a sample, by a randomised SVD from a fixed seed.
    """
    column, scale, sides, at = _reading(rows)
    if column is None:
        return None
    count = len(rows)
    sample = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
    taken = np.concatenate(
        [vectors[_within(sample, start, len(vectors))] for start, vectors in _read(rows, column, at)]
    )
    taken = scale(taken[np.isfinite(taken).all(axis=1)])
    if len(taken) < 3 or taken.shape[1] < 2:
        return None
    mean, axes, share = _principal(taken)
    points = [((scale(vectors) - mean) @ axes).astype(np.float32) for _, vectors in _read(rows, column, at)]
    unsafe, safe = (_projected(side, mean, axes) for side in sides)
    return RowMap(np.concatenate(points), unsafe, safe, share, column)


def _principal(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean (d,), the two first principal axes (d, 2), and the share of the variance that they show."""
    from sklearn.utils.extmath import randomized_svd

    mean = points.mean(axis=0)
    centred = points - mean
    _, values, axes = randomized_svd(centred, 2, n_iter=4, random_state=0)
    total = float(np.square(centred, dtype=np.float64).sum())
    return mean, axes.T, float(np.square(values.astype(np.float64)).sum() / total) if total else 0.0


def _reading(rows: RowColumns) -> tuple[str | None, Scale, tuple[np.ndarray, np.ndarray], str | None]:
    """Column of the vectors, their scaling, the references of both sides, and the column of the deciding span."""
    names = set.intersection(*(set(part.column_names) for part in rows.parts))
    for step in _parts_of_score(rows):
        read = compared_at(step)
        if read is not None and embedding_column(read[1]) in names:
            at = span_column(step.METHOD)
            try:
                shared = coordinates(*read, True)
            except SafefilterError:  # the references are not on this machine
                break
            return embedding_column(read[1]), shared, (shared.unsafe, shared.safe), at if at in names else None
    column = next((name for name in sorted(names) if name.startswith(EMBEDDING_PREFIX)), None)
    none = np.empty((0, 0), np.float32)
    return column, _as_they_are, (none, none), None


def _parts_of_score(rows: RowColumns) -> list[Score]:
    """The score that decides, or those that it combines."""
    by_column = {name: step for step in rows.saved.steps for name in step.produces() if hasattr(step, "METHOD")}
    step = by_column.get(rows.column)
    found = [by_column.get(name) for name in step.needs()] if isinstance(step, RankScore) else [step]
    return [part for part in found if part is not None]  # type: ignore[misc]  # a step with METHOD is a score


def _as_they_are(vectors: np.ndarray) -> np.ndarray:
    return vectors


def _read(rows: RowColumns, column: str, at: str | None) -> Iterator[tuple[int, np.ndarray]]:
    """Place of the first row, and a vector for each row, float32 (b, d), batch by batch."""
    start = 0
    for part in rows.parts:
        names = [column] if at is None else [column, at]
        for table in part.select_columns(names).with_format("arrow").iter(_BATCH):
            yield start, _one_each(Batch(table), column, at)
            start += len(table)


def _one_each(batch: Batch, column: str, at: str | None) -> np.ndarray:
    """The vector of the deciding span of each row, or of its first one; NaN where there is none."""
    vectors = batch.vectors(column)
    chosen = np.zeros(batch.n, np.int64)
    if at is not None:
        chosen = np.nan_to_num(batch.numbers(at), nan=-1).astype(np.int64)
    there = (chosen >= 0) & (chosen < vectors.counts)
    found = np.full((batch.n, vectors.values.shape[1]), np.nan, np.float32)
    found[there] = vectors.values[vectors.offsets[:-1][there] + chosen[there]]
    return found


def _within(sample: np.ndarray, start: int, count: int) -> np.ndarray:
    return sample[(sample >= start) & (sample < start + count)] - start


def _projected(side: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Up to `_MOST_REFERENCES` references of a side in the plane, float32 (m, 2)."""
    if not len(side):
        return np.empty((0, 2), np.float32)
    some = np.unique(np.linspace(0, len(side) - 1, min(len(side), _MOST_REFERENCES)).astype(np.int64))
    return ((side[some] - mean) @ axes).astype(np.float32)
