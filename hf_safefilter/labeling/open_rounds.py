"""Rounds of labels on scored rows, with the references and the options of their score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import OptionError
from hf_safefilter.labeling.rounds import LabelRounds
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.open import require_same_reading
from hf_safefilter.scores.base import ReferenceScore
from hf_safefilter.scores.probe import Probe, ProbeScore

if TYPE_CHECKING:
    from hf_safefilter.labeling.decided_labels import DecidedLabels
    from hf_safefilter.saved.saved_rows import Saved


def references_of_score(saved: Saved) -> ReferenceIndex:
    """The references of the rows' probe, or else of the first score that has some.

    Raises:
        OptionError: No score of the rows has references.
        MissingError: They are not in the store.
    """
    probes = [step.references for step in saved.steps if isinstance(step, ProbeScore)]
    others = [step.references_digest for step in saved.steps if isinstance(step, ReferenceScore)]
    if not probes and not others:
        raise OptionError("no score of these rows has references", fix="name them: `references=...`")
    return ReferenceIndex.of((probes + others)[0])


def rounds_on(saved: Saved, log: Path | DecidedLabels, references: ReferenceIndex) -> LabelRounds:
    """The rounds on the rows: at the layers and with the options of their score, if it is a probe.

    Raises:
        OptionError: The rows hold no embeddings, or no layer that the references have.
        DataError: The references were read otherwise than the rows, or the log is of other rows.
    """
    reader = next((step for step in saved.steps if isinstance(step, EmbedLayers)), None)
    if reader is None:
        raise OptionError("the rows hold no embeddings", fix="start with: hf-safefilter embed --help")
    require_same_reading(references, reader)
    options: dict[str, Any] = {}
    layers = tuple(layer for layer in reader.layers if layer in references.layers)
    if probe := next((step for step in saved.steps if isinstance(step, ProbeScore)), None):
        facts = Probe.of(probe.probe).facts
        layers = tuple(facts["layers"])
        options = {name: facts[name] for name in ("form", "shrinkage", "strength")}
    if not layers:
        raise OptionError("rows and references have no layer in common", fix="build the references with these layers")
    return LabelRounds(saved.rows, references, layers, log, columns=saved.mapping, **options)
