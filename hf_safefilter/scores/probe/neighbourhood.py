"""The nearest references at a layer, on the scale of the references themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import prompt_of
from hf_safefilter.data.vectors import mean_of_largest, unit
from hf_safefilter.errors import DataError
from hf_safefilter.references import SIDES, references
from hf_safefilter.references.flat import flat_index, search
from hf_safefilter.references.standard_scaling import Scaling

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
        scaling: What brings vectors into standard coordinates.
        indexes: FAISS indexes over the unit vectors of unsafe and of safe references.
        mean: Mean score of the references, in which both sides weigh the same.
        deviation: Their standard deviation.
        own: Scores of the references that are searched, unsafe ones first, float32 (n,). Each is compared with those of
            other requests, as it would be its own nearest neighbour.
    """

    scaling: Scaling
    indexes: tuple[faiss.IndexFlatIP, faiss.IndexFlatIP]
    mean: float
    deviation: float
    own: np.ndarray

    @classmethod
    def of(cls, sides: Sequence[np.ndarray], requests: Sequence[np.ndarray]) -> Self:
        """That of unsafe (m, d) and safe (s, d) vectors as the model has them.

        Args:
            sides: The vectors.
            requests: Number of the request that each of them answers.

        Raises:
            DataError: The references of a side are of one request, or all are alike.
        """
        some = [spread(len(side)) for side in sides]
        few = [side[place] for side, place in zip(sides, some, strict=True)]
        scaling = Scaling.of(*few)
        unsafe, safe = (unit(scaling(side)).astype(np.float32) for side in few)
        own = scores_among((unsafe, safe), [asked[place] for asked, place in zip(requests, some, strict=True)])
        mean, deviation = scale_of(own)
        inside = ((np.concatenate(own) - mean) / deviation).astype(np.float32)
        return cls(scaling, (flat_index(unsafe), flat_index(safe)), mean, deviation, inside)

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Mean of the largest cosines to unsafe references minus the same to safe ones, (m,), in deviations."""
        own = np.ascontiguousarray(self.scaling(vectors), dtype=np.float32)
        unsafe, safe = (search(index, own, min(K, index.ntotal))[0].mean(axis=1) for index in self.indexes)
        return (unsafe - safe - self.mean) / self.deviation


def spread(count: int) -> np.ndarray:
    """Places of at most `WIDEST` of `count` vectors, evenly spread."""
    return np.linspace(0, count - 1, min(count, WIDEST)).round().astype(int)


@lru_cache(maxsize=128)
def neighbourhood(digest: str, layer: Layer) -> Neighbourhood:
    """That of stored references at a layer; raises as `Neighbourhood.of` does."""
    index = references(digest)
    numbers: dict[str, int] = {}
    asked = [
        np.array([numbers.setdefault(prompt_of(row.conversation), len(numbers)) for row in index.rows(side)])
        for side in SIDES
    ]
    requests = [own[index.owners(side)] for own, side in zip(asked, SIDES, strict=True)]
    return Neighbourhood.of(index.vectors(layer), requests)


def scores_among(vectors: Sequence[np.ndarray], requests: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Neighbour scores of unsafe (m,) and of safe references (s,), each by those of other requests; float64.

    Args:
        vectors: Unit vectors of both sides, (m, d) and (s, d).
        requests: Number of the request that each answers.

    Raises:
        DataError: The references of a side are of one request.
    """
    scores: list[np.ndarray] = []
    for own, asked in zip(vectors, requests, strict=True):
        near = []
        for side, others, their in zip(SIDES, vectors, requests, strict=True):
            cosines = np.where(asked[:, None] == their[None], -np.inf, own @ others.T)
            k = min(K, int(np.isfinite(cosines).sum(axis=1).min()))
            if k < 1:
                raise DataError(f"the {side} references are of a single request", fix="give some of several requests")
            near.append(mean_of_largest(cosines, k))
        scores.append((near[0] - near[1]).astype(np.float64))
    return scores


def scale_of(scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and deviation of the scores of both sides, which weigh the same.

    Raises:
        DataError: They are all alike.
    """
    mean = (scores[0].mean() + scores[1].mean()) / 2
    deviation = np.sqrt((np.square(scores[0] - mean).mean() + np.square(scores[1] - mean).mean()) / 2)
    if not deviation > 0:
        raise DataError("all references have the same neighbours", fix="use other rows, or another layer")
    return float(mean), float(deviation)
