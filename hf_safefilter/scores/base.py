"""What the scores share: reading vectors from a batch, and settling the references that a step names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_safefilter.batch import Batch
from hf_safefilter.columns import Layer, embedding_column
from hf_safefilter.errors import DataError
from hf_safefilter.pieces import by_piece
from hf_safefilter.references import ReferenceIndex


def settle(step: Any) -> ReferenceIndex:
    """Put the digest in place of the index that `step.references` was given as; returns the index.

    Raises:
        MissingError: the references are not in the store, or were not read at `step.layer`.
    """
    index = ReferenceIndex.of(step.references)
    object.__setattr__(step, "references", index.digest)
    index.vectors(step.layer)
    return index


def vectors_beside(batch: Batch, index: ReferenceIndex, layer: Layer) -> np.ndarray:
    """The batch's vectors at `layer`, checked against the references': see `layer_vectors`."""
    return layer_vectors(batch, layer, index.vectors(layer)[0].shape[1], index.embed.get("model"))


def layer_vectors(batch: Batch, layer: Layer, width: int, model: str | None = None) -> np.ndarray:
    """The batch's vectors (n, width) at `layer`, in the dtype they are stored in.

    Raises:
        MissingError: no such column; ends with the call that makes it.
        DataError: vectors of another length, so of another model.
    """
    column = embedding_column(layer)
    name = "model" if model is None else repr(model)
    fix = f"ds = ds.map(EmbedLayers({name}, layers=[{layer!r}]), batched=True)"
    batch.require(column, fix)
    vectors = batch.vectors(column)
    if vectors.shape[1] == 0 or not len(vectors):  # no row, or null rows alone in a column of no fixed size
        return np.full((batch.n, width), np.nan, np.float32)
    if vectors.shape[1] != width:
        raise DataError(
            f"column {column!r} holds vectors of length {vectors.shape[1]}, the score was made for {width}",
            fix=f"embed with the same model: {fix}",
        )
    return vectors


def score(vectors: np.ndarray, one_piece: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Score `vectors` (n, d) a piece at a time; float32 (n,)."""
    return np.concatenate(by_piece(vectors, one_piece)).astype(np.float32)
