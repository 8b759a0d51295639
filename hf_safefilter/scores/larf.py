"""LARF: are the hidden states of a row more similar to harmful answers or to refusals?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.vectors import lengths, mean_of_largest, unit, widen
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex, references
from hf_safefilter.references.flat import flat_index, search
from hf_safefilter.references.index import check_count
from hf_safefilter.scores.base import ReferenceScore, score_vectors

if TYPE_CHECKING:
    import faiss


@dataclass(frozen=True, slots=True)
class LarfScore(ReferenceScore):
    """Cosine to the unsafe references minus cosine to the safe ones, in [-2, 2].

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read; LARF finds it by scaling blocks
            (`locate_safety_layers`).
        top: None for the mean over all references: one product with the difference of the mean unit vectors; the sides
            may have different numbers of rows. A number for the mean of the `top` largest differences over *pairs*,
            unsafe row j against safe row j: the order of the references matters, and both sides need equally many.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        DataError: `top` is given, and the sides have different numbers of rows.
        OptionError: `top` is larger than the number of pairs.

    Source: LARF, arXiv 2507.18631, the bidirectional representation score.
    """

    METHOD: ClassVar[str] = "larf"
    MEASURES: ClassVar[str] = "cosine to unsafe references minus cosine to safe ones"
    SOURCE: ClassVar[str] = "LARF, arXiv 2507.18631"

    _: KW_ONLY
    top: int | None = None
    algorithm: int = field(default=1, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there are at least `top` pairs."""
        if self.top is not None:
            check_count("top", self.top, check_pairs(*index.vectors(self.layer)), "reference pairs")

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,)."""
        rows, top = self.vectors(batch), self.top
        if top is None:
            axis = _direction(self.references_digest, self.layer)
            return {self.produces()[0]: score_vectors(rows, lambda piece: np.vecdot(piece, axis) / lengths(piece))}
        pairs = _pairs(self.references_digest, self.layer)
        return {self.produces()[0]: score_vectors(rows, lambda piece: search(pairs, piece, top)[0].mean(axis=1))}

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
def _direction(digest: str, layer: Layer) -> np.ndarray:
    return direction(*references(digest).vectors(layer))


@lru_cache(maxsize=32)
def _pairs(digest: str, layer: Layer) -> faiss.IndexFlatIP:
    unsafe, safe = references(digest).unit(layer)
    return flat_index(unsafe - safe)
