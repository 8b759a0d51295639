"""A score as somebody would add one: this file, and one line in `METHODS`."""

from dataclasses import dataclass, field
from typing import ClassVar

from hf_safefilter.data.vectors import unit
from hf_safefilter.scores.base import ReferenceScore


@dataclass(frozen=True, slots=True)
class FarthestScore(ReferenceScore):
    """Cosine to the mean unsafe reference minus the smallest cosine to a safe one.

    Args:
        references: The index, or its digest.
        layer: Where rows and references were read.
        standardize: Compare in standardised coordinates.
        pairs: Whether the rejected side of preference pairs has columns of its own.
    """

    METHOD: ClassVar[str] = "farthest"
    MEASURES: ClassVar[str] = "distance to the farthest safe reference"
    SOURCE: ClassVar[str] = "the tests"

    algorithm: int = field(default=1, init=False)

    def score(self, vectors):
        """The score of vectors in the coordinates of the references."""
        return self.against(vectors, self.coordinates.unsafe, self.coordinates.safe)

    @classmethod
    def against(cls, rows, unsafe, safe):
        """The score of vectors at hand."""
        rows = unit(rows)
        return rows @ unit(unsafe).mean(axis=0) - (rows @ unit(safe).T).min(axis=1)
