"""What a score declares, and what scores share: vectors of a batch, references, record batches to fit to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from hf_safefilter.columns import Layer, embedding_column, score_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.vectors import by_piece
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.step import Step

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

ROWS_PER_BATCH = 4096
"""Rows of a record batch that a score is fitted to."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a score is fitted before it can be made.

    Attributes:
        field: the option of the score that holds what was fitted.
        to: what it is fitted to: "rows" or "references".
        by: the function that fits it; what it is fitted to comes first.
        options: names of the function's other options.
    """

    field: str
    to: str
    by: Callable[..., Any]
    options: tuple[str, ...]


class Score(Step):
    """Base of every score: a step that adds ``<METHOD>_score``, float32, higher = more dangerous to alignment.

    A subclass is a frozen, slotted dataclass that declares the class variables below and implements `compute`.
    """

    __slots__ = ()

    METHOD: ClassVar[str]
    """By which name it is known, as `scores.METHODS` has it."""

    MEASURES: ClassVar[str]
    """What it measures, in a few words."""

    REQUIRES: ClassVar[str]
    """What a person has to bring."""

    SOURCE: ClassVar[str] = "ours"
    """The paper it comes from."""

    FITTING: ClassVar[Fitting | None] = None
    """How it is fitted before it can be made; None: it is not."""

    def produces(self) -> tuple[str, ...]:
        """The score column."""
        return (score_column(self.METHOD),)


@dataclass(frozen=True, slots=True)
class ReferenceScore(Score):
    """Base of scores that compare a row's vector with those of references at one layer.

    Args:
        references: the index, or its digest.
        layer: where rows and references were read.

    Raises:
        MissingError: the references are not in the store, or were not read at `layer`.
    """

    REQUIRES: ClassVar[str] = "references"

    references: ReferenceIndex | str
    layer: Layer

    def __post_init__(self) -> None:
        index = ReferenceIndex.of(self.references)
        object.__setattr__(self, "references", index.digest)
        index.vectors(self.layer)
        self.check(index)
        Step.__post_init__(self)

    def check(self, index: ReferenceIndex) -> None:
        """Raise where the options do not fit the references."""

    @property
    def index(self) -> ReferenceIndex:
        """The references, opened once a process."""
        return ReferenceIndex.of(self.references)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """The score with its usual options, of vectors at hand: `rows` (n, d), `unsafe` (m, d), `safe` (s, d); (n,).

        Computed in the widest dtype given: what cross-validation tries on references, and tests compare with.
        """
        raise NotImplementedError

    def vectors(self, batch: Batch) -> np.ndarray:
        """The batch's vectors (n, d) at `layer`, checked against the references': see `layer_vectors`."""
        index = self.index
        return layer_vectors(batch, self.layer, index.vectors(self.layer)[0].shape[1], index.embed.get("model"))


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


def score_vectors(vectors: np.ndarray, one_piece: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
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
