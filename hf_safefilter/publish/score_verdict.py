"""The verdict on the score that decides where no labels speak: by its references, held out, and the rows' lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_safefilter.columns import is_shift, prompt_key
from hf_safefilter.decide.verdict import Verdict, verdict_from_references
from hf_safefilter.decide.verdict.rank_statistics import Interval
from hf_safefilter.errors import DataError
from hf_safefilter.scores.base import ReferenceScore
from hf_safefilter.scores.probe import EnsembleScore, Probe, ProbeScore
from hf_safefilter.scores.ranks import RankScore
from hf_safefilter.scores.shift import ShiftScore

if TYPE_CHECKING:
    from hf_safefilter.columns import Layer
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.base import Score
    from hf_safefilter.step import Step


def verdict_without_labels(column: str, scores: np.ndarray, lengths: np.ndarray, steps: Sequence[Step]) -> Verdict:
    """The verdict on a score column by what its own steps can be held to.

    Args:
        column: Name of the column.
        scores: Its numbers (n,).
        lengths: Length of the responses (n,).
        steps: The steps that filled the columns of the rows.
    """
    return verdict_from_references(column, scores, lengths, held_out(column, steps))


def held_out(column: str, steps: Sequence[Step]) -> Interval | None:
    """How well the score in `column` separates references that it was not given: an AUROC by cross-validation.

    It is tried at its own layer alone, with the default options of the method. A combination of ranks is held
    to the weakest of its parts.

    Returns:
        None if it, or a part of it, does not compare with references, or reads more of them than one layer, or if these
        are too few for the folds.
    """
    step = next((step for step in reversed(steps) if column in step.produces()), None)
    if isinstance(step, RankScore):
        parts = [held_out(part, steps) for part in step.needs()]
        known = [part for part in parts if part is not None]
        return min(known, key=lambda part: part.low) if known and len(known) == len(parts) else None
    if isinstance(step, ProbeScore):
        layers = Probe.of(step.probe).layers
        if isinstance(step, EnsembleScore):
            layers = tuple(layer for layer in layers if not is_shift(layer))
        return _of_reading(step.references, step, layers)
    if isinstance(step, ShiftScore):
        return _of_reading(step.references_digest, step, (step.layer,))
    if not isinstance(step, ReferenceScore) or type(step).vectors is not ReferenceScore.vectors:
        return None  # cross-validation reads the references at one layer as they are, and not, say, as differences
    from hf_safefilter.locate.cross_validation import choose_layer

    references = cast("ReferenceIndex", _AtLayer(step.index, step.layer))
    try:
        (tried,) = choose_layer(references, methods=(step.METHOD,)).candidates
    except DataError:  # too few references for the folds
        return None
    return Interval(tried.auroc, tried.low, min(1.0, 2 * tried.auroc - tried.low))


def _of_reading(digest: str, step: Score, layers: tuple[Layer, ...]) -> Interval | None:
    """That of a method with default options at some layers, without the rows that a person labelled."""
    from hf_safefilter.locate.choose_reading import choose_reading
    from hf_safefilter.locate.cross_validation import auroc_error
    from hf_safefilter.references import references

    index = references(digest)
    read = (*layers, *map(prompt_key, layers)) if step.AT_PROMPT else layers
    try:
        readings = choose_reading(cast("ReferenceIndex", _AtLayer(index, *read)), methods=(step.METHOD,)).readings
    except DataError:  # too few references for the folds
        return None
    auroc = next((reading.auroc for reading in readings if reading.layers == layers), None)
    if auroc is None:  # a layer that is not tried, such as "norm"
        return None
    error = 1.96 * auroc_error(auroc, index.counts["unsafe"], index.counts["safe"])
    return Interval(auroc, auroc - error, min(1.0, auroc + error))


class _AtLayer:
    """References as if they had been read at some layers alone, so that no other is tried."""

    def __init__(self, references: ReferenceIndex, *layers: Layer) -> None:
        self._references = references
        self.layers = layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._references, name)
