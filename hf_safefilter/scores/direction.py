"""The direction from safe to unsafe references, and the projection of a row on it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hf_safefilter.checks import require_choice, require_number
from hf_safefilter.columns import Layer
from hf_safefilter.data.vectors import lengths, widen
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.coordinates import coordinates
from hf_safefilter.scores.base import ReferenceScore

FORMS = ("mean_difference", "lda")


@dataclass(frozen=True, slots=True)
class DirectionScore(ReferenceScore):
    """Projection of a row on the direction from the safe to the unsafe references; unbounded.

    Such a score follows whatever differs most between the two sides, often the length of the responses: compare it
    with `LengthScore` in `evaluate` before you use it.

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read.
        standardize: Compare in coordinates of mean 0 and deviation 1 among the references; False is the paper's form.
        pairs: Whether the rejected side of preference pairs has columns of its own.
        form: "mean_difference": the projection on the unit difference of means (the refusal direction of Arditi et
            al., arXiv 2406.11717, pointing to harm). "lda": linear discriminant analysis, the squared Mahalanobis
            distance to the safe mean minus that to the unsafe mean, under one pooled covariance.
        shrinkage: For "lda", in (0, 1]: the share of its mean variance times the identity that is mixed into the
            covariance, which is singular without it where there are fewer references than dimensions.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        OptionError: `form` is unknown, or `shrinkage` is outside (0, 1].
        DataError: Both sides have the same mean, or for "lda" no variance.
    """

    METHOD: ClassVar[str] = "direction"
    MEASURES: ClassVar[str] = "projection on the difference of means, or shrinkage LDA"
    SOURCE: ClassVar[str] = "Arditi et al., arXiv 2406.11717"

    _: KW_ONLY
    form: str = "mean_difference"
    shrinkage: float = 0.1
    algorithm: int = field(default=2, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless the references have a direction of this form."""
        line(self.coordinates.unsafe, self.coordinates.safe, self.form, self.shrinkage)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `projection`."""
        return projection(rows, unsafe, safe)

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """See `projection`."""
        origin, direction = _line(self.references_digest, self.layer, self.standardize, self.form, self.shrinkage)
        return _project(vectors, origin, direction)


def projection(
    rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, form: str = "mean_difference", shrinkage: float = 0.1
) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d), in the widest dtype passed; (n,)."""
    return _project(widen(rows), *line(unsafe, safe, form, shrinkage))


def line(unsafe: np.ndarray, safe: np.ndarray, form: str, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Origin and direction, (d,) each, computed in float64, in the dtype of `unsafe`. See `DirectionScore`."""
    require_choice("form", form, FORMS)
    require_number("shrinkage", shrinkage, above=0, most=1)
    kind = widen(unsafe).dtype
    unsafe, safe = unsafe.astype(np.float64), safe.astype(np.float64)
    difference = unsafe.mean(axis=0) - safe.mean(axis=0)
    size = np.linalg.norm(difference)
    if not size > 1e-6 * max(np.linalg.norm(unsafe.mean(axis=0)), np.linalg.norm(safe.mean(axis=0))):
        raise DataError("the unsafe and the safe references have the same mean", fix="use other rows or another layer")
    if form == "mean_difference":
        return np.zeros_like(difference, dtype=kind), (difference / size).astype(kind)
    midpoint = (unsafe.mean(axis=0) + safe.mean(axis=0)) / 2
    return midpoint.astype(kind), (2 * _whitened(difference, unsafe, safe, shrinkage)).astype(kind)


def _whitened(difference: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, shrinkage: float) -> np.ndarray:
    """The inverse of the shrunk pooled covariance times `difference`."""
    within = np.concatenate([unsafe - unsafe.mean(axis=0), safe - safe.mean(axis=0)])
    count, width = within.shape
    variance = np.square(within).sum() / (count * width)
    if not variance > 0:
        raise DataError("the references of each side are all equal, and lda needs variance", fix="use more rows")
    # With fewer references than dimensions, the Woodbury identity needs the inverse of a much smaller matrix.
    ridge, weight = shrinkage * variance, (1 - shrinkage) / count
    inner = ridge * np.eye(count) + weight * (within @ within.T)
    return (difference - weight * within.T @ np.linalg.solve(inner, within @ difference)) / ridge


def _project(rows: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(lengths(rows)), np.nan, np.vecdot(rows - origin, direction))


@lru_cache(maxsize=32)
def _line(digest: str, layer: Layer, standardize: bool, form: str, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    both = coordinates(digest, layer, standardize)
    return line(both.unsafe, both.safe, form, shrinkage)
