"""What a score declares, and what scores share: vectors of a batch, references, record batches to fit to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from hf_safefilter.columns import (
    Layer,
    answer_key,
    embedding_column,
    is_shift,
    rejected_column,
    score_column,
    shift_column,
    span_column,
    span_scores_column,
    stored_keys,
)
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.splits import missing_column
from hf_safefilter.data.vectors import by_piece, lengths
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.coordinates import Coordinates, coordinates, neighbours_index
from hf_safefilter.references.read_alike import require_read_alike
from hf_safefilter.references.read_sides import refuse_zero_direction
from hf_safefilter.step import Step

if TYPE_CHECKING:
    import faiss
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
        required: Those of them that it cannot do without.
    """

    field: str
    to: str
    by: Callable[..., Any]
    options: tuple[str, ...]
    required: tuple[str, ...] = ()


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

    AT_PROMPT: ClassVar[bool] = False
    """Whether it compares answers with the end of their prompts, which then is read too."""

    DANGER: ClassVar[str] = "contains harm"
    """What a row with a high score does, in a few words."""

    FITTING: ClassVar[Fitting | None] = None
    """How it is fitted before it can be made; None if it is not fitted."""

    def spent(self) -> dict[str, int]:
        """What scoring has cost in this process beside its time, such as tokens that were paid for; mostly nothing."""
        return {}

    def produces(self) -> tuple[str, ...]:
        """The score column."""
        return (score_column(self.METHOD),)


class SpanScore(Score):
    """Base of scores of vectors: each span of a row has a score, and the row's is the largest of its spans'.

    Adds ``<METHOD>_score``; ``<METHOD>_span``, int32: the index in ``spans`` of the span with that score, -1 where
    there is none; and ``<METHOD>_span_scores``, float32: the scores of all spans. For preference pairs the score is
    that of the chosen side; with `pairs` there are also ``<METHOD>_rejected_score`` and ``<METHOD>_pair_shift``, the
    chosen side's score minus the rejected side's.

    A subclass has the field ``pairs``, and implements `vectors` and `span_scores`.
    """

    __slots__ = ()

    pairs: bool

    def produces(self) -> tuple[str, ...]:
        """The score column and those of spans; with `pairs` those of the other side and of the difference too."""
        more = (rejected_column(self.METHOD), shift_column(self.METHOD)) if self.pairs else ()
        return (score_column(self.METHOD), span_column(self.METHOD), span_scores_column(self.METHOD), *more)

    def vectors(self, batch: Batch) -> Ragged:
        """The vectors of the batch that are scored."""
        raise NotImplementedError

    def span_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Score of each of `vectors` (m, d), which are float32 or float64: (m,), NaN where there is none."""
        raise NotImplementedError

    def word_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Score of each of `vectors` (m, d) of single tokens; (m,), NaN where there is none."""
        return self.span_scores(vectors)

    def of_rows(self, scores: Ragged, batch: Batch) -> Ragged:
        """What `span_scores` gave, float32 (m,), where the spans of a row are to be looked at together."""
        return scores

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,), int32 (n,) and float32 (m,) of all spans; with `pairs` two more columns of float32 (n,)."""
        vectors, spans = self.vectors(batch), batch.spans()
        scores = Ragged(np.concatenate(by_piece(vectors.values, self.span_scores)).astype(np.float32), vectors.offsets)
        _require_together(vectors, spans)
        scores = self.of_rows(scores, batch)
        rejected = np.zeros(len(scores.values), bool) if spans is None else spans.values["rejected"]
        chosen, at = largest_of(scores, ~rejected)
        columns: dict[str, Column] = {
            score_column(self.METHOD): chosen,
            span_column(self.METHOD): at,
            span_scores_column(self.METHOD): scores,
        }
        if self.pairs:
            other, _ = largest_of(scores, rejected)
            columns |= {rejected_column(self.METHOD): other, shift_column(self.METHOD): chosen - other}
        return columns


def answer_means(scores: Ragged, spans: Ragged | None) -> np.ndarray:
    """For each window the mean score of its answer's windows, weighted by their lengths, float32 (m,).

    Args:
        scores: A score for each span of each row.
        spans: What was read of each row; None if nothing is known but the row, which then is one answer.
    """
    if not len(scores.values):
        return scores.values
    answer, weights = answers_of(scores, spans), np.ones(len(scores.values))
    if spans is not None:
        weights = (spans.values["stop"] - spans.values["start"]).astype(np.float64)
    means = np.bincount(answer, weights * scores.values) / np.bincount(answer, weights)
    return means[answer].astype(np.float32)


def answers_of(windows: Ragged, spans: Ragged | None) -> np.ndarray:
    """Number of the answer that each window is of, int (m,); without spans a row is one answer."""
    if spans is None:
        return windows.owners
    place = np.stack([windows.owners, spans.values["turn"], spans.values["rejected"]], axis=1)
    numbers: np.ndarray = np.unique(place, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def chosen_side(windows: Ragged, spans: Ragged | None) -> Ragged:
    """What belongs to the chosen side of preference pairs, of which a row's label speaks; all of other rows.

    Raises:
        DataError: These are not the windows of `spans`.
    """
    _require_together(windows, spans)
    return windows if spans is None else windows.where(~spans.values["rejected"])


def _require_together(windows: Ragged, spans: Ragged | None) -> None:
    if spans is not None and not np.array_equal(spans.offsets, windows.offsets):
        raise DataError("`spans` and vectors do not belong together", fix="embed the rows again")


def largest_of(scores: Ragged, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest of the scores `among` (m,) those of each row, float32 (n,), and its index among all of the row."""
    if among.all():
        return scores.largest()
    top, _ = scores.where(among).largest()
    unlike = Ragged(np.where(among, scores.values, -np.inf).astype(np.float32), scores.offsets)
    return top, np.where(np.isnan(top), -1, unlike.largest()[1]).astype(np.int32)


@dataclass(frozen=True, slots=True)
class ReferenceScore(SpanScore):
    """Base of scores that compare the vectors of a row with those of references at one layer.

    Args:
        references: The index, or its digest; the digest is stored.
        layer: The layer at which rows and references were read.
        standardize: Compare in coordinates of mean 0 and deviation 1 among the references; the papers do not.
        pairs: Whether the rejected side of preference pairs has columns of its own.

    A subclass implements `score` and `against`.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        DataError: Both sides are the same there.
    """

    REQUIRES: ClassVar[str] = "references"

    references: ReferenceIndex | str
    layer: Layer
    _: KW_ONLY
    standardize: bool = True
    pairs: bool = False

    def __post_init__(self) -> None:
        index = ReferenceIndex.of(self.references)
        object.__setattr__(self, "references", index.digest)
        refuse_zero_direction(self.layer, *index.vectors(self.layer))
        self.check(index)
        Step.__post_init__(self)

    def check(self, index: ReferenceIndex) -> None:
        """Raise if the options do not fit the references."""

    @property
    def coordinates(self) -> Coordinates:
        """The reference vectors in the coordinates of the score."""
        return coordinates(self.references_digest, self.layer, self.standardize)

    def neighbours(self, side: str) -> faiss.IndexFlatIP:
        """FAISS index over the unit vectors of a side, in the coordinates of the score."""
        return neighbours_index(self.references_digest, self.layer, side, self.standardize)

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Score of `vectors` (m, d) that are in the coordinates of the score: (m,), NaN where there is none."""
        raise NotImplementedError

    def span_scores(self, vectors: np.ndarray) -> np.ndarray:
        """See `score`; these vectors are as the model has them. One that is zero holds nothing, and has no score."""
        return np.where(np.isnan(lengths(vectors)), np.nan, self.score(self.coordinates(vectors)))

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

        The vectors are all in the same coordinates, whatever these are. It is computed in the widest dtype of the
        arguments. Cross-validation and tests use it.
        """
        raise NotImplementedError

    def vectors(self, batch: Batch) -> Ragged:
        """The batch's vectors at `layer`, of the same length as those of the references; see `layer_vectors`."""
        index = self.index
        require_read_alike(batch, index.embed, embedding_column(answer_key(self.layer)))
        width = index.vectors(answer_key(self.layer))[0].shape[1]
        return layer_vectors(batch, self.layer, width, index.embed.get("model"))


def layer_vectors(batch: Batch, layer: Layer, width: int, model: str | None = None) -> Ragged:
    """The batch's vectors (width,) at `layer`, in the dtype they are stored in.

    Args:
        batch: The rows.
        layer: The layer.
        width: The length that vectors must have.
        model: Name of the model to embed with, for messages.

    Raises:
        MissingError: There is no such column; the message shows the call that adds it.
        DataError: The vectors have another length, so they come from another model; or those of a shift do not belong
            together.
    """
    if is_shift(layer):
        answers, prompts = (layer_vectors(batch, key, width, model) for key in stored_keys(layer))
        if not np.array_equal(answers.offsets, prompts.offsets):
            raise DataError("answers and ends of prompts do not belong together", fix="embed the rows again")
        return Ragged(answers.values.astype(np.float32) - prompts.values.astype(np.float32), answers.offsets)
    column = embedding_column(layer)
    name = "model" if model is None else repr(model)
    block, _, position = str(layer).partition("_")
    where = f'layers=[{block}], position="mean,{position}"' if position else f"layers=[{layer!r}]"
    fix = f"ds = ds.map(EmbedLayers({name}, {where}), batched=True)"
    batch.require(column, fix)
    vectors = batch.vectors(column)
    if not len(vectors.values):  # no rows, or none that could be read
        return Ragged(np.empty((0, width), np.float32), vectors.offsets)
    if vectors.values.shape[1] != width:
        raise DataError(
            f"column {column!r} holds vectors of length {vectors.values.shape[1]}, but the score was made for {width}",
            fix=f"embed with the same model: {fix}",
        )
    return vectors


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
                raise missing_column(column, names, fix)
        yield from part.select_columns(list(columns)).with_format("arrow").iter(ROWS_PER_BATCH)
