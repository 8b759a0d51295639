"""LARF: are the hidden states of a row more similar to harmful answers or to refusals?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.vectors import lengths, mean_of_largest, unit, widen
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex, references
from hf_safefilter.references.coordinates import coordinates
from hf_safefilter.references.flat import flat_index, search
from hf_safefilter.references.index import check_count
from hf_safefilter.scores.base import ReferenceScore

if TYPE_CHECKING:
    import faiss


@dataclass(frozen=True, slots=True)
class LarfScore(ReferenceScore):
    """Cosine to the unsafe references minus cosine to the safe ones, in [-2, 2].

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read; LARF finds it by scaling blocks
            (`locate_safety_layers`).
        standardize: Compare in coordinates of mean 0 and deviation 1 among the references; False is the paper's form.
        pairs: Whether the rejected side of preference pairs has columns of its own.
        top: None for the mean over all references: one product with the difference of the mean unit vectors; the sides
            may have different numbers of rows. A number for the mean of the `top` largest differences over *pairs*,
            unsafe row j against safe row j: the order of the references matters, and both sides need equally many.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        DataError: `top` is given, and the sides have different numbers of rows, or a row was read in several spans.
        OptionError: `top` is larger than the number of pairs.

    Source: LARF, arXiv 2507.18631, the bidirectional representation score.
    """

    METHOD: ClassVar[str] = "larf"
    MEASURES: ClassVar[str] = "cosine to unsafe references minus cosine to safe ones"
    SOURCE: ClassVar[str] = "LARF, arXiv 2507.18631"

    _: KW_ONLY
    top: int | None = None
    algorithm: int = field(default=2, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there are at least `top` pairs."""
        if self.top is not None:
            index.require_one_span_each("`top` compares unsafe reference j with safe reference j")
            check_count(
                "top", self.top, check_pairs(index.vectors(self.layer)[0], index.refused(self.layer)), "reference pairs"
            )

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """See `larf`."""
        if self.top is None:
            axis = _direction(self.references_digest, self.layer, self.standardize)
            return np.vecdot(vectors, axis) / lengths(vectors)
        pairs = _pairs(self.references_digest, self.layer, self.standardize)
        return search(pairs, vectors, self.top)[0].mean(axis=1)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `larf`."""
        return larf(rows, unsafe, safe)


def larf(rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray, top: int | None = None) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d), in the widest dtype passed; (n,)."""
    if top is None:
        return unit(rows) @ direction(unsafe, safe)
    check_count("top", top, check_pairs(unsafe, safe), "reference pairs")
    return mean_of_largest(unit(rows) @ (unit(unsafe) - unit(safe)).T, top)


def direction(unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
    """Mean unit unsafe vector minus mean unit safe vector, summed in float64; (d,) in the dtype of `unsafe`."""
    difference = unit(unsafe).mean(axis=0, dtype=np.float64) - unit(safe).mean(axis=0, dtype=np.float64)
    return difference.astype(widen(unsafe).dtype)


def check_pairs(unsafe: np.ndarray, safe: np.ndarray) -> int:
    """Number of pairs; raises `DataError` unless both sides have equally many rows."""
    if len(unsafe) != len(safe):
        raise DataError(
            "`top` compares unsafe reference j with safe reference j, so both sides need equally many rows",
            found=f"{len(unsafe)} unsafe, {len(safe)} safe",
            fix="use `top=None`, or references in pairs",
        )
    return len(unsafe)


@lru_cache(maxsize=32)
def _direction(digest: str, layer: Layer, standardize: bool) -> np.ndarray:
    both = coordinates(digest, layer, standardize)
    return direction(both.unsafe, both.safe)


@lru_cache(maxsize=32)
def _pairs(digest: str, layer: Layer, standardize: bool) -> faiss.IndexFlatIP:
    both = coordinates(digest, layer, standardize)
    refused = both.safe[: len(references(digest).refused(layer))]  # ordinary rows stand behind them
    return flat_index(unit(both.unsafe) - unit(refused))
