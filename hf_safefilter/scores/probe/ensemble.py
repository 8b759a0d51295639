"""EnsembleScore: a probe and the nearest references together, of answers and of what they add to their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_safefilter.columns import Layer, is_shift, shift_key
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.errors import OptionError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.base import Fitting
from hf_safefilter.scores.probe.fit import Boundaries, Probe, fit_probe
from hf_safefilter.scores.probe.neighbourhood import neighbourhood
from hf_safefilter.scores.probe.noise import noise_of
from hf_safefilter.scores.probe.score import PROBE_FITTING, ProbeScore


def fit_ensemble(references: ReferenceIndex, layers: Layer | Sequence[Layer], **options: Any) -> Probe:
    """Fit the probe of an `EnsembleScore`: at each layer, to answers and to their shifts from the end of the prompt.

    Args:
        references: Unsafe answers, refusals and ordinary rows, read at ``mean,last_prompt``.
        layers: The layer, or layers, of answers.
        options: Those of `fit_probe`.

    Raises:
        OptionError: An option that makes no sense.
        MissingError: The references were not read at a layer, or not at the end of the prompt.
        DataError: There are no labels of both kinds, nothing tells the classes apart, or a side of the references is of
            a single request.
    """
    names = (layers,) if isinstance(layers, (int, str)) else tuple(layers)
    probe = fit_probe(references, _readings(names), **options)
    for layer in probe.layers:  # what has no neighbours is refused here, and not among the rows
        neighbourhood(references.digest, layer)
    return probe


def _readings(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    return (*layers, *map(shift_key, layers))


@dataclass(frozen=True, slots=True)
class EnsembleScore(ProbeScore):
    """Mean of a probe and of the nearest references, both in deviations of the references; positive where unsafe.

    Each is taken at several layers, and at each layer of two vectors: the answer's mean state, and its shift, which is
    that state minus the state at the end of the prompt. In the first, a row is judged by what it is about; in the
    second, what it is about stands in both and cancels out. None of the four is best everywhere; their errors differ.

    Args:
        probe: What `fit_ensemble` returned, or its digest. The references and layers are those that it was fitted to.
        pairs: Whether the rejected side of preference pairs has columns of its own.

    Raises:
        OptionError: The probe was not fitted to layers and their shifts.
    """

    METHOD: ClassVar[str] = "ensemble"
    MEASURES: ClassVar[str] = "probe and nearest references together, of answers and of what they add to their prompts"
    REQUIRES: ClassVar[str] = "references, read at mean,last_prompt"
    AT_PROMPT: ClassVar[bool] = True
    FITTING: ClassVar[Fitting | None] = replace(PROBE_FITTING, by=fit_ensemble)

    algorithm: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        ProbeScore.__post_init__(self)
        layers = Probe.of(self.probe).layers
        if layers != _readings([layer for layer in layers if not is_shift(layer)]):
            raise OptionError(
                "this probe was not fitted for an ensemble", found=", ".join(map(str, layers)), fix="use fit_ensemble"
            )

    def vectors(self, batch: Batch) -> Ragged:
        """The vectors of the probe's layers, one after the other."""
        for layer in Probe.of(self.probe).layers:  # once, and not in each of the threads that score
            neighbourhood(self.references, layer)
        return ProbeScore.vectors(self, batch)

    def span_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Scores of spans (m, readings * d), the vectors of the probe's layers one after the other; (m,)."""
        fitted = Probe.of(self.probe)
        parts = vectors.reshape(len(vectors), len(fitted.layers), fitted.directions.shape[1])
        near = [
            neighbourhood(self.references, layer).score(np.ascontiguousarray(parts[:, place]))
            for place, layer in enumerate(fitted.layers)
        ]
        return (fitted.score(vectors) + np.mean(near, axis=0)) / 2

    @property
    def noise(self) -> float:
        """Standard deviation of the scores of the references' windows about the mean of their row."""
        return _noise(Probe.of(self.probe).digest)

    def word_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Those of the probe alone: a span's score by neighbours is not the mean of its words'."""
        return ProbeScore.span_scores(self, vectors)


@lru_cache(maxsize=16)
def _noise(digest: str) -> float:
    """See `EnsembleScore.noise`."""
    fitted = Probe.of(digest)
    return noise_among(ReferenceIndex.of(fitted.facts["references"]), fitted.layers, fitted)


def noise_among(index: ReferenceIndex, layers: Sequence[Layer], fitted: Boundaries | Probe) -> float:
    """Deviation of the scores of windows about the mean of their row, among the references that are searched.

    Args:
        index: The references.
        layers: Those of the probe, answers and shifts.
        fitted: The probe.
    """
    scores = []
    for layer, direction, offset in zip(layers, fitted.directions, fitted.offsets, strict=True):
        near = neighbourhood(index.digest, layer)
        some = [side[place] for side, place in zip(index.vectors(layer), near.places, strict=True)]
        scores.append((np.concatenate(some) @ direction + offset + near.own) / 2)
    return noise_of(np.mean(scores, axis=0), near.rows)
