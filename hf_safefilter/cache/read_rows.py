"""What reading some rows gave: a vector a layer, whether a row was cut, and why one could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hf_safefilter.columns import Layer

NON_FINITE = "non_finite"
"""Reason of a row whose states overflowed to infinity or NaN."""


@dataclass(slots=True)
class Reading:
    """n rows as they were read.

    Attributes:
        vectors: layer -> `(n, hidden_size)`, NaN where a row has no vector in that layer.
        truncated: bool `(n,)`.
        reasons: strings `(n,)`, "" where the row could be read.
    """

    vectors: dict[Layer, np.ndarray]
    truncated: np.ndarray
    reasons: np.ndarray

    @classmethod
    def blank(cls, reasons: Sequence[str], layers: Sequence[Layer], width: int, dtype: type = np.float16) -> Self:
        """Nothing read yet: NaN."""
        n = len(reasons)
        vectors = {layer: np.full((n, width), np.nan, dtype) for layer in layers}
        return cls(vectors, np.zeros(n, bool), np.array(reasons, dtype=object))

    def put(self, rows: np.ndarray, layer: Layer, vectors: np.ndarray, truncated: np.ndarray, reasons: object) -> None:
        """Set one layer of `rows`."""
        self.vectors[layer][rows] = vectors
        self.truncated[rows] = truncated
        self.reasons[rows] = reasons

    def repeat(self, copies: Mapping[int, int]) -> None:
        """Give each row in `copies` what the row that it is a copy of has."""
        to, of = list(copies), list(copies.values())
        for values in (*self.vectors.values(), self.truncated, self.reasons):
            values[to] = values[of]

    def settled(self) -> Self:
        """The same, with a row that is not finite in one layer NaN in all, and its reason said."""
        finite = np.all([np.isfinite(values).all(axis=1) for values in self.vectors.values()], axis=0)
        for row in np.flatnonzero(~finite):
            self.reasons[row] = self.reasons[row] or NON_FINITE
            for values in self.vectors.values():
                values[row] = np.nan
        return self
