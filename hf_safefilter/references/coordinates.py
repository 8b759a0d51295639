"""Reference vectors in the coordinates in which rows are compared with them, opened once a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.vectors import unit
from hf_safefilter.references.flat import flat_index
from hf_safefilter.references.index import references
from hf_safefilter.references.standard_scaling import Scaling

if TYPE_CHECKING:
    import faiss


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """The vectors of both sides.

    Attributes:
        unsafe: `(m, d)`.
        safe: `(s, d)`.
        scaling: What brings other vectors into the same coordinates; None if they are as the model has them.
    """

    unsafe: np.ndarray
    safe: np.ndarray
    scaling: Scaling | None

    @classmethod
    def of(cls, unsafe: np.ndarray, safe: np.ndarray, standardize: bool) -> Coordinates:
        """Those of vectors as the model has them.

        Raises:
            DataError: All vectors are the same.
        """
        if not standardize:
            return cls(unsafe, safe, None)
        scaling = Scaling.of(unsafe, safe)
        return cls(scaling(unsafe), scaling(safe), scaling)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Other vectors (n, d) in these coordinates."""
        return vectors if self.scaling is None else self.scaling(vectors)


@lru_cache(maxsize=32)
def coordinates(digest: str, layer: Layer, standardize: bool) -> Coordinates:
    """The vectors of stored references at a layer."""
    return Coordinates.of(*references(digest).vectors(layer), standardize)


@lru_cache(maxsize=32)
def neighbours_index(digest: str, layer: Layer, side: str, standardize: bool) -> faiss.IndexFlatIP:
    """FAISS index over the unit vectors of a side of stored references."""
    if not standardize:
        return references(digest).index(layer, side)
    both = coordinates(digest, layer, standardize)
    return flat_index(unit(both.unsafe if side == "unsafe" else both.safe))
