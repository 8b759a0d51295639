"""One direction from safe to unsafe references, and how far along it a row lies."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.vectors import lengths, widen
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.references import ReferenceIndex, references
from hf_safefilter.scores.base import ReferenceScore, score_vectors

FORMS = ("mean_difference", "lda")


@dataclass(frozen=True, slots=True)
class DirectionScore(ReferenceScore):
    """Place of a row along the line from the safe to the unsafe references; unbounded, lengths count.

    Such a score follows whatever differs most between the two sides, often length: compare it with `LengthScore` in
    `evaluate` before deciding by it.

    Args:
        references: the index, or its digest.
        layer: where rows and references were read.
        form: "mean_difference", the projection on the unit difference of means (the refusal direction of Arditi et
            al., arXiv 2406.11717, towards harm); or "lda", linear discriminant analysis: squared Mahalanobis distance
            to the safe mean minus that to the unsafe mean under one pooled covariance.
        shrinkage: for "lda", in (0, 1]: the covariance is mixed with this share of its mean variance times the
            identity. With fewer references than dimensions it is singular without.

    Raises:
        MissingError: references or layer not there.
        OptionError: another form, or a shrinkage outside (0, 1].
        DataError: equal means, or for "lda" no variance within the sides.
    """

    METHOD: ClassVar[str] = "direction"
    MEASURES: ClassVar[str] = "projection on the difference of means, or shrinkage LDA"
    SOURCE: ClassVar[str] = "Arditi et al., arXiv 2406.11717"

    _: KW_ONLY
    form: str = "mean_difference"
    shrinkage: float = 0.1
    algorithm: int = field(default=1, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there is a direction of this form between the references."""
        line(*index.vectors(self.layer), self.form, self.shrinkage)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `place`."""
        return place(rows, unsafe, safe)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,)."""
        rows = self.vectors(batch)
        origin, along = _line(self.index.digest, self.layer, self.form, self.shrinkage)
        return {self.produces()[0]: score_vectors(rows, lambda piece: _place(piece, origin, along))}


def place(
    rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, form: str = "mean_difference", shrinkage: float = 0.1
) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d), in the widest dtype given; (n,)."""
    return _place(widen(rows), *line(unsafe, safe, form, shrinkage))


def line(unsafe: np.ndarray, safe: np.ndarray, form: str, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Origin and direction, (d,) each, in the dtype given; worked out in float64. See `DirectionScore`."""
    if form not in FORMS:
        raise OptionError(f"{form!r} is not a form of direction", found=", ".join(FORMS), fix="use one of these")
    if not 0 < shrinkage <= 1:
        raise OptionError(f"shrinkage={shrinkage!r} is outside (0, 1]", fix="use for example 0.1")
    kind = widen(unsafe).dtype
    unsafe, safe = unsafe.astype(np.float64), safe.astype(np.float64)
    difference = unsafe.mean(axis=0) - safe.mean(axis=0)
    size = np.linalg.norm(difference)
    if not size > 1e-6 * max(np.linalg.norm(unsafe.mean(axis=0)), np.linalg.norm(safe.mean(axis=0))):
        raise DataError("the unsafe and the safe references have the same mean", fix="use other rows or another layer")
    if form == "mean_difference":
        return np.zeros_like(difference, dtype=kind), (difference / size).astype(kind)
    middle = (unsafe.mean(axis=0) + safe.mean(axis=0)) / 2
    return middle.astype(kind), (2 * _whitened(difference, unsafe, safe, shrinkage)).astype(kind)


def _whitened(difference: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, shrinkage: float) -> np.ndarray:
    """Shrunk pooled covariance, inverted, times `difference`."""
    within = np.concatenate([unsafe - unsafe.mean(axis=0), safe - safe.mean(axis=0)])
    count, width = within.shape
    variance = np.square(within).sum() / (count * width)
    if not variance > 0:
        raise DataError("no reference differs from the others of its side: lda needs variance", fix="use more rows")
    # A few hundred references in thousands of dimensions: the Woodbury identity inverts a matrix of their number.
    ridge, weight = shrinkage * variance, (1 - shrinkage) / count
    inner = ridge * np.eye(count) + weight * (within @ within.T)
    return (difference - weight * within.T @ np.linalg.solve(inner, within @ difference)) / ridge


def _place(rows: np.ndarray, origin: np.ndarray, along: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(lengths(rows)), np.nan, np.vecdot(rows - origin, along))


@lru_cache(maxsize=32)
def _line(digest: str, layer: Layer, form: str, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    return line(*references(digest).vectors(layer), form, shrinkage)
