"""ProbeScore: on which side of a fitted boundary does a row lie?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import answer_key, embedding_column, embedding_columns
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.references.read_alike import require_read_alike
from hf_safefilter.scores.base import Fitting, SpanScore, layer_vectors
from hf_safefilter.scores.probe.fit import Probe, fit_probe
from hf_safefilter.scores.probe.noise import part_and_whole
from hf_safefilter.step import Step

PROBE_FITTING = Fitting(
    field="probe",
    to="references",
    by=fit_probe,
    options=("layers", "form", "shrinkage", "strength", "labeled", "label", "unsafe", "weight"),
    required=("layers",),
)
"""A probe, for the scores that are made of one."""


@dataclass(frozen=True, slots=True)
class ProbeScore(SpanScore):
    """Distance from the boundary between unsafe and safe references, and labelled rows; positive where unsafe.

    A window's score is the mean of its own distance and of its answer's mean distance: what an answer is as a whole
    counts as much as its worst part. What the largest of as many windows would reach by chance is taken off.

    Args:
        probe: What `fit_probe` returned, or its digest.
        pairs: Whether the rejected side of preference pairs has columns of its own.
    """

    METHOD: ClassVar[str] = "probe"
    MEASURES: ClassVar[str] = "linear probe (shrinkage LDA or logistic regression) on references and labelled rows"
    REQUIRES: ClassVar[str] = "references"
    FITTING: ClassVar[Fitting | None] = PROBE_FITTING

    probe: Probe | str
    _: KW_ONLY
    pairs: bool = False
    algorithm: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probe", Probe.of(self.probe).digest)
        Step.__post_init__(self)

    @property
    def references(self) -> str:
        """Digest of the references that the probe was fitted to, as the card states them."""
        digest: str = Probe.of(self.probe).facts["references"]
        return digest

    def needs(self) -> tuple[str, ...]:
        """The vectors at the layers of the probe."""
        layers = Probe.of(self.probe).layers
        return tuple(dict.fromkeys(column for layer in layers for column in embedding_columns(layer)))

    def vectors(self, batch: Batch) -> Ragged:
        """The batch's vectors at the layers of the probe, one after the other."""
        fitted = Probe.of(self.probe)
        require_read_alike(batch, fitted.facts["embed"], embedding_column(answer_key(fitted.layers[0])))
        parts = [layer_vectors(batch, layer, fitted.directions.shape[1]) for layer in fitted.layers]
        return Ragged(np.concatenate([part.values for part in parts], axis=1), parts[0].offsets)

    def span_scores(self, vectors: np.ndarray) -> np.ndarray:
        """See `Probe.score`."""
        return Probe.of(self.probe).score(vectors)

    def of_rows(self, scores: Ragged, batch: Batch) -> Ragged:
        """Each window with half the weight, its answer with the other half."""
        return part_and_whole(scores, batch.spans(), self.noise)

    @property
    def noise(self) -> float:
        """Standard deviation of the scores of windows about the mean of their row, among the examples."""
        return Probe.of(self.probe).noise
