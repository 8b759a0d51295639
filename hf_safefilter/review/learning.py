"""What a score learns from the decisions of people: which rows to ask for next, and the rows scored again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.splits import parts_of
from hf_safefilter.decide.thresholds import numbers_of
from hf_safefilter.errors import DataError
from hf_safefilter.labeling.open_rounds import references_of_score, rounds_on
from hf_safefilter.labeling.rescored import rescored
from hf_safefilter.labeling.rounds import PER_ROUND
from hf_safefilter.pipeline.decision_rule import decide_threshold
from hf_safefilter.recipe import SelectionRule
from hf_safefilter.references.files import SIDES
from hf_safefilter.references.joined_rows import base_of, with_rows
from hf_safefilter.saved.saved_rows import SCORED, TRAIL, load_rows_with_steps, save_again
from hf_safefilter.scores.probe import Probe, ProbeScore
from hf_safefilter.storage.atomic import require_replaceable

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.decide.thresholds import Threshold
    from hf_safefilter.labeling import LabelRounds
    from hf_safefilter.labeling.decided_labels import DecidedLabels
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.saved.saved_rows import Saved

REFERENCES = "references"
"""Folder of the references with the rows that have joined them, beside the rows that are scored again."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """Rows that were scored again, and are not written yet.

    Attributes:
        saved: The rows.
        references: What their probe, or first score, compares them with.
        joined: Whether rows have joined these.
        sentence: What was learnt from, and what it is worth.
    """

    saved: Saved
    references: ReferenceIndex
    joined: bool
    sentence: str

    def write(self, output: Path) -> Saved:
        """Write the rows, and the references if rows have joined them or earlier ones lie there; the rows as stored."""
        if self.joined or (output / REFERENCES).is_dir():
            self.references.save(output / REFERENCES)
        save_again(self.saved, output / SCORED)
        return load_rows_with_steps(output / SCORED, trust_vectors=self.saved.trusted)


@dataclass(frozen=True, slots=True)
class _Session:
    """The rounds with decisions as labels.

    Attributes:
        rounds: The rounds.
        references: What they use.
        instead_of: Digests of the references in whose place these come.
        joined: Number of rows that have joined them.
        changed: Whether they are others than those of the score.
    """

    rounds: LabelRounds
    references: ReferenceIndex
    instead_of: Collection[str]
    joined: int
    changed: bool


def rows_to_ask(saved: Saved, decided: DecidedLabels, count: int = PER_ROUND) -> list[int]:
    """Places of the rows whose label would change the score most; see `LabelRounds.next_rows`.

    Raises:
        OptionError: The rows have no score with references, or no embeddings.
    """
    return _session(saved, decided).rounds.next_rows(count, besides=decided.joining)


def learn(saved: Saved, decided: DecidedLabels, output: Path) -> Learnt:
    """Fit the probe to the references and to the rows that people have decided on, and score all rows again.

    A row that joins the references is one of them from now on, and no label; then every score that compares vectors
    with the same references is made again.

    Args:
        saved: The scored rows; they are not changed.
        decided: The decisions.
        output: Folder that is to get the rows; nothing is written yet.

    Raises:
        OptionError: The rows have no score with references, or no embeddings, or `output` holds other files.
        DataError: There are not decisions of both kinds, or a row cannot join the references.
    """
    require_replaceable(output / SCORED, TRAIL)
    session = _session(saved, decided)
    labels = session.rounds.labeled
    before = next((Probe.of(step.probe) for step in saved.steps if isinstance(step, ProbeScore)), None)
    taught = len(set(labels.values())) > 1
    if not taught and not session.changed and (before is None or "labels" not in before.facts):
        raise DataError(
            "the rows decided so far are not of both kinds, and none is marked as a reference",
            found=f"{sum(labels.values())} dropped or masked, {len(labels) - sum(labels.values())} kept",
            fix="decide on more rows: keep some, and drop some",
        )
    probe = session.rounds.probe() if taught else session.rounds.probe_of_references() if before is not None else None
    again = rescored(saved, probe=probe, references=session.references, instead_of=session.instead_of)
    said = []
    if session.joined:
        said.append(f"{session.joined} {'row has' if session.joined == 1 else 'rows have'} joined the references")
    said.append(session.rounds.point().sentence() if taught else "no label is left: by the references alone")
    return Learnt(again, session.references, session.joined > 0, "; ".join(said))


def threshold_with(above: int, saved: Saved, column: str) -> Threshold:
    """The threshold that so many of the scored rows reach, or as many as can."""
    scores = numbers_of(saved.rows, column)
    known = scores[np.isfinite(scores)]
    if not above or len(known) < 2:
        rule = SelectionRule.checked(threshold=float(np.nextafter(known.max(initial=0.0), np.inf)))
    else:
        rule = SelectionRule.checked(drop_count=min(above, len(known) - 1))
    return decide_threshold(saved.rows, column, rule, saved.steps)


def _session(saved: Saved, decided: DecidedLabels) -> _Session:
    before = references_of_score(saved)
    data_set = (saved.name, saved.revision)
    index = base = base_of(before, data_set)
    sides = decided.joining
    if sides:
        names = ({name for name, of in sides.items() if of == side} for side in SIDES)
        unsafe, safe = (_rows_with(saved, ids) for ids in names)
        if len(unsafe) or len(safe):
            index = with_rows(base, unsafe, safe, mapping=saved.mapping, data_set=data_set)
    joined = sum(index.counts.values()) - sum(base.counts.values())
    rounds = rounds_on(saved, decided.without_rows(sides), index)
    return _Session(rounds, index, {before.digest, base.digest}, joined, index.digest != before.digest)


def _rows_with(saved: Saved, ids: set[str]) -> Dataset:
    """The rows with these ids, each once."""
    from datasets import concatenate_datasets

    left = set(ids)
    parts = []
    for part in parts_of(saved.rows):
        names = part.select_columns([ROW_ID]).with_format("arrow")[:][ROW_ID].to_pylist() if len(part) and left else []
        places = []
        for place, name in enumerate(names):
            if name in left:
                left.discard(name)
                places.append(place)
        parts.append(part.select(np.array(places, np.int64)))
    return concatenate_datasets([part for part in parts if len(part)] or parts[:1])
