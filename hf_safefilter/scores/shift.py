"""ShiftScore: how far an answer moves the model from the end of the prompt towards compliance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_safefilter.columns import PROMPT, Layer, embedding_column, prompt_key, shift_key
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.vectors import lengths
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.references import ReferenceIndex, references
from hf_safefilter.references.read_alike import require_read_alike
from hf_safefilter.references.standard_scaling import Scaling
from hf_safefilter.scores import METHODS, method
from hf_safefilter.scores.base import ReferenceScore, answer_means, layer_vectors

if TYPE_CHECKING:
    from hf_safefilter.model.reading_options import ReadingOptions


@dataclass(frozen=True, slots=True)
class ShiftScore(ReferenceScore):
    """Mean state of an answer minus that of the last prompt token, projected on compliance minus refusal.

    What the prompt is about stands in both and cancels out, so this finds benign rows that wear refusals away, rather
    than rows that contain harm. An answer that was read in windows has one score, the mean of theirs weighted by their
    lengths; a row has that of its highest answer. The direction is the mean of the unsafe answers minus that of the
    refusals, of length one; ordinary rows of the safe side do not take part.

    Rows and references are read at two positions in one pass: ``EmbedLayers(..., position="mean,last_prompt")``.

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read.
        standardize: Compare in coordinates of deviation 1 among the references; the paper does not.
        pairs: Whether the rejected side of preference pairs has columns of its own.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer` and at the end of the prompt.
        DataError: Both sides are the same there.

    Source: compliance shift, DataShield, arXiv 2606.00160; persona vectors, arXiv 2507.21509, in their cheap form.
    """

    METHOD: ClassVar[str] = "shift"
    MEASURES: ClassVar[str] = "compliance shift: answer minus end of prompt, on compliance minus refusal"
    REQUIRES: ClassVar[str] = "references, read at mean,last_prompt"
    SOURCE: ClassVar[str] = "DataShield, arXiv 2606.00160"
    DANGER: ClassVar[str] = "wears refusals away"
    AT_PROMPT: ClassVar[bool] = True

    _: KW_ONLY
    standardize: bool = False
    algorithm: int = field(default=2, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless the references were read at the end of the prompt too, and have a direction."""
        shift_key(self.layer)  # is none itself
        if prompt_key(self.layer) not in index.layers:
            raise MissingError(
                f"the references were not read at the end of the prompt at layer {self.layer!r}",
                found=", ".join(map(str, index.layers)),
                fix='build them with EmbedLayers(..., position="mean,last_prompt")',
            )
        _direction(index.digest, self.layer, self.standardize)

    def needs(self) -> tuple[str, ...]:
        """The vectors of the answers and of the end of the prompt."""
        return embedding_column(self.layer), embedding_column(prompt_key(self.layer))

    def vectors(self, batch: Batch) -> Ragged:
        """Vectors of the answers minus those of the end of the prompt, float32 (m, d)."""
        require_read_alike(batch, self.index.embed, embedding_column(self.layer))
        return layer_vectors(batch, shift_key(self.layer), self.index.vectors(self.layer)[0].shape[1])

    def span_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Projection of shifts (m, d) on the direction; (m,), NaN for a zero shift."""
        direction = _direction(self.references_digest, self.layer, self.standardize)
        return np.where(np.isnan(lengths(vectors)), np.nan, vectors @ direction.astype(vectors.dtype))

    def of_rows(self, scores: Ragged, batch: Batch) -> Ragged:
        """Every window has the score of its answer: the mean over its windows, weighted by their lengths."""
        return Ragged(answer_means(scores, batch.spans()), scores.offsets)

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """The projection of `rows`, which are shifts, on the unit difference of the means of both sides; (n,)."""
        return rows @ compliance(unsafe, safe).astype(rows.dtype)


def at_prompt_too(reading: ReadingOptions, methods: Iterable[str]) -> ReadingOptions:
    """`reading` with the end of the prompt, which is read in the same pass, if one of `methods` compares with it."""
    if PROMPT in reading.positions or not any(method(name).AT_PROMPT for name in methods if name in METHODS):
        return reading
    return replace(reading, position=",".join((*reading.positions, PROMPT)))


def compliance(unsafe: np.ndarray, refused: np.ndarray) -> np.ndarray:
    """Mean of `unsafe` (m, d) minus that of `refused` (r, d), of length one, computed in float64; (d,).

    Raises:
        DataError: The means are the same.
    """
    difference = unsafe.mean(axis=0, dtype=np.float64) - refused.mean(axis=0, dtype=np.float64)
    size = np.linalg.norm(difference)
    if not size > 0:
        raise DataError("unsafe answers and refusals have the same mean", fix="use other rows, or another layer")
    return difference / size


@lru_cache(maxsize=32)
def _direction(digest: str, layer: Layer, standardize: bool) -> np.ndarray:
    """The direction on which shifts as the model has them are projected."""
    index = references(digest)
    unsafe, refused = _means(index, layer)
    if not standardize:
        return compliance(unsafe, refused)
    deviation = Scaling.of(unsafe, refused).deviation  # a coordinate that hardly varies must not rule all others
    return compliance(unsafe / deviation, refused / deviation) / deviation


def _means(index: ReferenceIndex, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """One vector for each unsafe answer and each refusal: the mean over its windows."""
    unsafe, _ = index.vectors(layer)
    refused = index.refused(layer)
    owners = index.owners("unsafe"), index.owners("safe")[: len(refused)]
    return tuple(  # type: ignore[return-value]  # two of them
        np.stack([np.bincount(owner, column) for column in values.T.astype(np.float64)], axis=1)
        / np.bincount(owner)[:, None]
        for values, owner in zip((unsafe, refused), owners, strict=True)
    )
