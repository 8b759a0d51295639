"""What a score declares, and what scores share: vectors of a batch, references, record batches to fit to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

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
"""Number of rows of a record batch that a score is fitted to."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a score is fitted before it can be made.

    Attributes:
        field: Name of the option of the score that takes the fitted artefact.
        to: What the score is fitted to: "rows" or "references".
        by: The function that fits it; its first argument is what the score is fitted to.
        options: Names of the other options of that function.
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
    """Its name in `scores.METHODS`."""

    MEASURES: ClassVar[str]
    """What it measures, in a few words."""

    REQUIRES: ClassVar[str]
    """What the user has to provide."""

    SOURCE: ClassVar[str] = "ours"
    """The paper it comes from."""

    FITTING: ClassVar[Fitting | None] = None
    """How it is fitted before it can be made; None if it is not fitted."""

    def produces(self) -> tuple[str, ...]:
        """The score column."""
        return (score_column(self.METHOD),)


@dataclass(frozen=True, slots=True)
class ReferenceScore(Score):
    """Base of scores that compare a row's vector with those of references at one layer.

    Args:
        references: The index, or its digest; the digest is stored.
        layer: The layer at which rows and references were read.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
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
        """Raise if the options do not fit the references."""

    @property
    def references_digest(self) -> str:
        """Digest of the references: what `references` is after construction."""
        return cast("str", self.references)

    @property
    def index(self) -> ReferenceIndex:
        """The references, opened once a process."""
        return ReferenceIndex.of(self.references)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """The score of `rows` (n, d) against `unsafe` (m, d) and `safe` (s, d) with default options; (n,).

        It is computed in the widest dtype of the arguments. Cross-validation and tests use it.
        """
        raise NotImplementedError

    def vectors(self, batch: Batch) -> np.ndarray:
        """The batch's vectors (n, d) at `layer`, of the same length as those of the references; see `layer_vectors`."""
        index = self.index
        return layer_vectors(batch, self.layer, index.vectors(self.layer)[0].shape[1], index.embed.get("model"))


def layer_vectors(batch: Batch, layer: Layer, width: int, model: str | None = None) -> np.ndarray:
    """The batch's vectors (n, width) at `layer`, in the dtype they are stored in.

    Args:
        batch: The rows.
        layer: The layer.
        width: The length that vectors must have.
        model: Name of the model to embed with, for messages.

    Raises:
        MissingError: There is no such column; the message shows the call that adds it.
        DataError: The vectors have another length, so they come from another model.
    """
    column = embedding_column(layer)
    name = "model" if model is None else repr(model)
    fix = f"ds = ds.map(EmbedLayers({name}, layers=[{layer!r}]), batched=True)"
    batch.require(column, fix)
    vectors = batch.vectors(column)
    if vectors.shape[1] == 0 or not len(vectors):  # no rows, or only null rows in a column of variable size
        return np.full((batch.n, width), np.nan, np.float32)
    if vectors.shape[1] != width:
        raise DataError(
            f"column {column!r} holds vectors of length {vectors.shape[1]}, but the score was made for {width}",
            fix=f"embed with the same model: {fix}",
        )
    return vectors


def score_vectors(vectors: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `score` to `vectors` (n, d), one piece at a time; float32 (n,)."""
    return np.concatenate(by_piece(vectors, score)).astype(np.float32)


def record_batches(
    ds: Dataset | DatasetDict | IterableDataset, columns: Sequence[str], *, fix: str
) -> Iterator[pa.Table]:
    """Arrow tables of `columns` to fit to: a few thousand rows each, without a detour through Python lists.

    The splits follow one another; a filtered or shuffled data set yields its rows in its own order.

    Raises:
        MissingError: A split lacks a column; `fix` says how to add it.
    """
    for part in ds.values() if isinstance(ds, Mapping) else [ds]:
        names = part.column_names
        for column in columns:
            if names is not None and column not in names:
                raise MissingError(f"column {column!r} is missing", found=", ".join(names), fix=fix)
        yield from part.select_columns(list(columns)).with_format("arrow").iter(ROWS_PER_BATCH)
