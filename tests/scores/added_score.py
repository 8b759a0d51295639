"""A score as somebody would add one: this file, and one line in `METHODS`."""

from dataclasses import dataclass, field
from typing import ClassVar

from hf_safefilter.data.vectors import unit
from hf_safefilter.scores.base import ReferenceScore, score_vectors


@dataclass(frozen=True, slots=True)
class FarthestScore(ReferenceScore):
    """Cosine to the mean unsafe reference minus the smallest cosine to a safe one.

    Args:
        references: The index, or its digest.
        layer: Where rows and references were read.
    """

    METHOD: ClassVar[str] = "farthest"
    MEASURES: ClassVar[str] = "distance to the farthest safe reference"
    SOURCE: ClassVar[str] = "the tests"

    algorithm: int = field(default=1, init=False)

    def compute(self, batch, rank):
        """float32 (n,)."""
        unsafe, safe = self.index.vectors(self.layer)
        scores = score_vectors(self.vectors(batch), lambda piece: self.against(piece, unsafe, safe))
        return {self.produces()[0]: scores}

    @classmethod
    def against(cls, rows, unsafe, safe):
        """The score of vectors at hand."""
        rows = unit(rows)
        return rows @ unit(unsafe).mean(axis=0) - (rows @ unit(safe).T).min(axis=1)
