"""EnsembleScore: a probe and the nearest references together, of answers and of what they add to their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_safefilter.columns import Layer, is_shift, shift_key
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.errors import OptionError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.base import Fitting
from hf_safefilter.scores.probe.fit import Probe, fit_probe
from hf_safefilter.scores.probe.neighbourhood import neighbourhood
from hf_safefilter.scores.probe.score import ProbeScore

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def fit_ensemble(
    references: ReferenceIndex,
    layers: Layer | Sequence[Layer],
    *,
    form: str = "lda",
    shrinkage: float = 0.3,
    strength: float = 0.01,
    labeled: Dataset | DatasetDict | None = None,
    label: str = "label",
    unsafe: str | int | bool = "unsafe",
    weight: float = 1.0,
) -> Probe:
    """Fit the probe of an `EnsembleScore`: at each layer, to answers and to their shifts from the end of the prompt.

    Args:
        references: Unsafe answers, refusals and ordinary rows, read at ``mean,last_prompt``.
        layers: The layer, or layers, of answers.
        form: See `fit_probe`, as for all others.
        shrinkage: See there.
        strength: See there.
        labeled: See there.
        label: See there.
        unsafe: See there.
        weight: See there.

    Raises:
        OptionError: An option that makes no sense.
        MissingError: The references were not read at a layer, or not at the end of the prompt.
        DataError: There are no labels of both kinds, or nothing tells the classes apart.
    """
    names = (layers,) if isinstance(layers, (int, str)) else tuple(layers)
    for key in (keys := _readings(names)):  # what has no neighbours is found here, and not among the rows
        neighbourhood(references.digest, key)
    return fit_probe(
        references, keys, form=form, shrinkage=shrinkage, strength=strength,
        labeled=labeled, label=label, unsafe=unsafe, weight=weight,
    )  # fmt: skip


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
    FITTING: ClassVar[Fitting | None] = Fitting(
        field="probe",
        to="references",
        by=fit_ensemble,
        options=("layers", "form", "shrinkage", "strength", "labeled", "label", "unsafe", "weight"),
        required=("layers",),
    )

    algorithm: int = field(default=1, init=False)

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

    def word_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Those of the probe alone: a span's score by neighbours is not the mean of its words'."""
        return ProbeScore.span_scores(self, vectors)
