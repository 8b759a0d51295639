"""Standardised coordinates: in the states of an LLM a few coordinates are so large that they rule every cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hf_safefilter.data.vectors import widen
from hf_safefilter.errors import DataError

_LEAST = 1e-3  # a coordinate that hardly varies among the references is not blown up further than this allows


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Mean and standard deviation of each coordinate.

    Attributes:
        mean: `(d,)`, in the dtype of the vectors.
        deviation: `(d,)`, positive.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, unsafe: np.ndarray, safe: np.ndarray) -> Self:
        """Those of both sides together, computed in float64.

        Raises:
            DataError: All vectors are the same.
        """
        both = np.concatenate([unsafe, safe]).astype(np.float64)
        deviation = both.std(axis=0)
        usual = float(np.median(deviation))
        if not usual > 0:
            raise DataError("most coordinates are the same in all references", fix="use other rows, or another layer")
        kind = widen(unsafe).dtype
        return cls(both.mean(axis=0).astype(kind), np.maximum(deviation, _LEAST * usual).astype(kind))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, d) in standardised coordinates, in at least float32."""
        return (widen(vectors) - self.mean) / self.deviation
