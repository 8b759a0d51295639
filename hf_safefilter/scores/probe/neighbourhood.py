"""The nearest references at a layer, on the scale of the references themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import prompt_of
from hf_safefilter.data.vectors import mean_of_largest, unit
from hf_safefilter.errors import DataError
from hf_safefilter.references import SIDES, references
from hf_safefilter.references.coordinates import Coordinates
from hf_safefilter.references.flat import flat_index, search

if TYPE_CHECKING:
    import faiss

K = 5
"""Neighbours on each side."""

WIDEST = 4000
"""Reference vectors of a side that are searched, spread evenly over it: more change nothing but time and memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhood:
    """The nearest references at a layer, on the scale of the references themselves.

    Attributes:
        both: The vectors of both sides in standard coordinates.
        indexes: FAISS indexes over the unit vectors of unsafe and of safe references.
        mean: Mean score of the references, in which both sides weigh the same.
        deviation: Their standard deviation.
    """

    both: Coordinates
    indexes: tuple[faiss.IndexFlatIP, faiss.IndexFlatIP]
    mean: float
    deviation: float

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Mean of the largest cosines to unsafe references minus the same to safe ones, (m,), in deviations."""
        own = np.ascontiguousarray(self.both(vectors), dtype=np.float32)
        unsafe, safe = (search(index, own, min(K, index.ntotal))[0].mean(axis=1) for index in self.indexes)
        return (unsafe - safe - self.mean) / self.deviation


@lru_cache(maxsize=128)
def neighbourhood(digest: str, layer: Layer) -> Neighbourhood:
    """That of stored references at a layer.

    For the scale each reference is compared with those of other requests, as it would be its own nearest neighbour.

    Raises:
        DataError: The references are of one request, or all alike.
    """
    index = references(digest)
    numbers: dict[str, int] = {}
    vectors, requests = [], []
    for side, values in zip(SIDES, index.vectors(layer), strict=True):
        asked = [numbers.setdefault(prompt_of(row.conversation), len(numbers)) for row in index.rows(side)]
        some = np.arange(len(values))[:: -(-len(values) // WIDEST)]
        vectors.append(values[some])
        requests.append(np.array(asked)[index.owners(side)[some]])
    both = Coordinates.of(vectors[0], vectors[1], True)
    sides = unit(both.unsafe), unit(both.safe)
    return Neighbourhood(both, (flat_index(sides[0]), flat_index(sides[1])), *scale_of(sides, requests))


def scale_of(vectors: Sequence[np.ndarray], requests: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and deviation of the neighbour scores of unsafe and of safe references, both sides with the same weight.

    Args:
        vectors: Unit vectors of both sides, (m, d) and (s, d).
        requests: Number of the request that each answers.
    """
    found: list[Any] = []
    for own, asked in zip(vectors, requests, strict=True):
        near = []
        for others, their in zip(vectors, requests, strict=True):
            cosines = np.where(asked[:, None] == their[None], -np.inf, own @ others.T)
            k = min(K, int(np.isfinite(cosines).sum(axis=1).min()))
            if k < 1:
                raise DataError("the references are of a single request", fix="give references of several requests")
            near.append(mean_of_largest(cosines, k))
        found.append((near[0] - near[1]).astype(np.float64))
    mean = (found[0].mean() + found[1].mean()) / 2
    deviation = np.sqrt((np.square(found[0] - mean).mean() + np.square(found[1] - mean).mean()) / 2)
    if not deviation > 0:
        raise DataError("all references have the same neighbours", fix="use other rows, or another layer")
    return float(mean), float(deviation)
