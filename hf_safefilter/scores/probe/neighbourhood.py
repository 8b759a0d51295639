"""The nearest references at a layer, on the scale of the references themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import prompt_of
from hf_safefilter.data.ragged import Ragged
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
"""Vectors of a side that are searched, of rows spread evenly over it: more change nothing but time and memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhood:
    """The nearest references at a layer, on the scale of the references themselves.

    Attributes:
        scaling: What brings vectors into standard coordinates.
        indexes: FAISS indexes over the unit vectors of unsafe and of safe references.
        mean: Mean score of the references, in which both sides weigh the same.
        deviation: Their standard deviation.
        places: Which vectors of each side are searched.
        rows: Number of the row of each vector that is searched, unsafe ones first, int (n,).
        own: Scores of these, float32 (n,). Each is compared with those of other requests, as it would be its own
            nearest neighbour.
    """

    scaling: Scaling
    indexes: tuple[faiss.IndexFlatIP, faiss.IndexFlatIP]
    mean: float
    deviation: float
    places: tuple[np.ndarray, np.ndarray]
    rows: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, sides: Sequence[Ragged], requests: Sequence[np.ndarray]) -> Self:
        """That of unsafe and of safe rows, with the vectors of their spans as the model has them.

        Args:
            sides: The rows of each side.
            requests: Number of the request that each row answers.

        Raises:
            DataError: The references of a side are of one request, or all are alike.
        """
        places = [spread(side) for side in sides]
        few = [side.values[place] for side, place in zip(sides, places, strict=True)]
        owners = [side.owners[place] for side, place in zip(sides, places, strict=True)]
        scaling = Scaling.of(*few)
        unsafe, safe = (unit(scaling(side)).astype(np.float32) for side in few)
        own = scores_among((unsafe, safe), [asked[rows] for asked, rows in zip(requests, owners, strict=True)])
        mean, deviation = scale_of(own)
        inside = ((np.concatenate(own) - mean) / deviation).astype(np.float32)
        rows = np.concatenate([owners[0], len(sides[0]) + owners[1]])
        indexes = flat_index(unsafe), flat_index(safe)
        return cls(scaling, indexes, mean, deviation, (places[0], places[1]), rows, inside)

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Mean of the largest cosines to unsafe references minus the same to safe ones, (m,), in deviations."""
        own = np.ascontiguousarray(self.scaling(vectors), dtype=np.float32)
        unsafe, safe = (search(index, own, min(K, index.ntotal))[0].mean(axis=1) for index in self.indexes)
        return (unsafe - safe - self.mean) / self.deviation


def spread(side: Ragged) -> np.ndarray:
    """Places of at most `WIDEST` vectors, of rows spread evenly, which are taken whole unless they are long ones."""
    kept = max(1, len(side) * WIDEST // max(len(side.values), WIDEST))
    rows = np.linspace(0, len(side) - 1, kept).round().astype(int)
    places = np.flatnonzero(np.isin(side.owners, rows))
    return places[np.linspace(0, len(places) - 1, min(len(places), WIDEST)).round().astype(int)]


@lru_cache(maxsize=128)
def neighbourhood(digest: str, layer: Layer) -> Neighbourhood:
    """That of stored references at a layer; raises as `Neighbourhood.of` does."""
    index = references(digest)
    numbers: dict[str, int] = {}
    asked = [
        np.array([numbers.setdefault(prompt_of(row.conversation), len(numbers)) for row in index.rows(side)])
        for side in SIDES
    ]
    return Neighbourhood.of(index.rows_at(layer), asked)


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
