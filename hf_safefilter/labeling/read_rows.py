"""Rows with the vectors of their spans, as a probe is fitted to them and scores them, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.vectors import by_piece
from hf_safefilter.scores.base import chosen_side, largest_of, layer_vectors
from hf_safefilter.scores.probe.discriminant import Examples
from hf_safefilter.scores.probe.noise import part_and_whole

if TYPE_CHECKING:
    from hf_safefilter.columns import Layer
    from hf_safefilter.scores.probe.fit import Boundaries


@dataclass(frozen=True, slots=True, eq=False)
class ReadRows:
    """n rows with their vectors at some layers.

    Attributes:
        layers: For each layer the vectors of each row's spans.
        spans: What was read of each row; None if nothing is known but the row.
    """

    layers: tuple[Ragged, ...]
    spans: Ragged | None

    @classmethod
    def of(cls, batch: Batch, layers: Sequence[Layer], width: int) -> Self:
        """The rows of a batch.

        Raises:
            MissingError: There are no vectors at a layer.
            DataError: They have another length than `width`.
        """
        return cls(tuple(layer_vectors(batch, layer, width) for layer in layers), batch.spans())

    def take(self, rows: np.ndarray) -> ReadRows:
        """The given rows, in the given order."""
        spans = None if self.spans is None else self.spans.take(rows)
        return ReadRows(tuple(vectors.take(rows) for vectors in self.layers), spans)

    def scores(self, boundaries: Boundaries) -> np.ndarray:
        """The scores that `ProbeScore` gives these rows, float32 (n,)."""
        first = self.layers[0]
        vectors = np.concatenate([vectors.values for vectors in self.layers], axis=1)
        values = np.concatenate(by_piece(vectors, boundaries.score)).astype(np.float32)
        scores = part_and_whole(Ragged(values, first.offsets), self.spans, boundaries.noise)
        chosen = np.ones(len(scores.values), bool) if self.spans is None else ~self.spans.values["rejected"]
        return largest_of(scores, chosen)[0]

    def examples(self, truth: np.ndarray) -> list[Examples]:
        """The spans of the rows as examples at each layer; all spans of a row weigh 1. `truth` is (n,), 1 = unsafe."""
        examples = []
        for layer in self.layers:
            vectors = chosen_side(layer, self.spans)
            rows, weights = vectors.owners, 1 / np.maximum(vectors.counts, 1)
            examples.append(Examples(vectors.values.astype(np.float64), truth[rows] > 0.5, weights[rows], rows))
        return examples

    def means(self) -> np.ndarray:
        """Mean vector of each row's spans, the layers one after the other, float32 (n, layers * d); 0 without spans."""
        parts = []
        for vectors in self.layers:
            total = np.zeros((len(vectors), vectors.values.shape[1]), np.float32)
            np.add.at(total, vectors.owners, vectors.values.astype(np.float32))
            parts.append(total / np.maximum(vectors.counts, 1)[:, None])
        return np.concatenate(parts, axis=1)
