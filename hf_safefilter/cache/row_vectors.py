"""The result of reading some rows: a vector for each layer, whether a row was cut, and why one could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hf_safefilter.columns import Layer

NON_FINITE = "non_finite"
"""Reason of a row whose states overflowed to infinity or NaN."""


@dataclass(slots=True)
class RowVectors:
    """The vectors of n rows, and what else was learned when they were read.

    Attributes:
        vectors: Layer -> `(n, hidden_size)`; NaN where a row has no vector in that layer.
        truncated: bool `(n,)`: whether the row was cut to fit.
        reasons: Strings `(n,)`: why the row could not be read; "" where it could.
    """

    vectors: dict[Layer, np.ndarray]
    truncated: np.ndarray
    reasons: np.ndarray

    @classmethod
    def blank(cls, reasons: Sequence[str], layers: Sequence[Layer], width: int, dtype: type = np.float16) -> Self:
        """Rows of which nothing has been read yet: all vectors are NaN."""
        n = len(reasons)
        vectors: dict[Layer, np.ndarray] = {layer: np.full((n, width), np.nan, dtype) for layer in layers}
        return cls(vectors, np.zeros(n, bool), np.array(reasons, dtype=object))

    def put(self, rows: np.ndarray, layer: Layer, vectors: np.ndarray, truncated: np.ndarray, reasons: object) -> None:
        """Set one layer of `rows`."""
        self.vectors[layer][rows] = vectors
        self.truncated[rows] = truncated
        self.reasons[rows] = reasons

    def repeat(self, originals: Mapping[int, int]) -> None:
        """Copy to each row among the keys of `originals` all values of the row that it is a duplicate of."""
        copies, sources = list(originals), list(originals.values())
        for values in (*self.vectors.values(), self.truncated, self.reasons):
            values[copies] = values[sources]

    def mark_non_finite(self) -> Self:
        """Set a row that is not finite in one layer to NaN in all layers, and state the reason; returns itself."""
        finite = np.all([np.isfinite(values).all(axis=1) for values in self.vectors.values()], axis=0)
        for row in np.flatnonzero(~finite):
            self.reasons[row] = self.reasons[row] or NON_FINITE
            for values in self.vectors.values():
                values[row] = np.nan
        return self
