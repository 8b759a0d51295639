"""What the scores share: vectors of a batch, references that a step names, record batches to fit to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_safefilter.batch import Batch
from hf_safefilter.columns import Layer, embedding_column
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.pieces import by_piece
from hf_safefilter.references import ReferenceIndex

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

ROWS_PER_BATCH = 4096
"""Rows of a record batch that a score is fitted to."""


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


def record_batches(
    ds: Dataset | DatasetDict | IterableDataset, columns: Sequence[str], *, fix: str
) -> Iterator[pa.Table]:
    """Arrow tables of `columns` to fit to: a few thousand rows each, never through Python lists.

    All splits come one after the other; a filtered or shuffled data set gives its own rows in its own order.

    Raises:
        MissingError: a split lacks a column; `fix` says how to make it.
    """
    for part in ds.values() if isinstance(ds, Mapping) else [ds]:
        there = part.column_names
        for column in columns:
            if there is not None and column not in there:
                raise MissingError(f"column {column!r} is missing", found=", ".join(there), fix=fix)
        yield from part.select_columns(list(columns)).with_format("arrow").iter(ROWS_PER_BATCH)
