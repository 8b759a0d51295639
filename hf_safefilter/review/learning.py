"""What a score learns from the decisions of people: which rows to ask for next, and the rows scored again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.splits import parts_of
from hf_safefilter.decide.row_decisions import strictest
from hf_safefilter.errors import DataError
from hf_safefilter.labeling.decided_labels import DecidedLabels, decisions_by_row
from hf_safefilter.labeling.open_rounds import references_of_score, rounds_on
from hf_safefilter.labeling.rescored import rescored
from hf_safefilter.labeling.rounds import PER_ROUND
from hf_safefilter.references.joined_rows import base_of, with_rows
from hf_safefilter.saved.saved_rows import SCORED, TRAIL, load_rows_with_steps, save_again
from hf_safefilter.scores.probe import ProbeScore
from hf_safefilter.storage.atomic import require_replaceable

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.decide.decision_log import DecisionLog
    from hf_safefilter.labeling import LabelRounds
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.saved.saved_rows import Saved

REFERENCES = "references"
"""Folder of the references with the rows that have joined them, beside the rows that are scored again."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """Rows that were scored again.

    Attributes:
        saved: The rows, as they are stored now.
        sentence: What was learnt from, and what it is worth.
    """

    saved: Saved
    sentence: str


def rows_to_ask(saved: Saved, log: DecisionLog, count: int = PER_ROUND) -> list[int]:
    """Places of the rows whose label would change the score most; see `LabelRounds.next_rows`.

    Raises:
        OptionError: The rows have no score with references, or no embeddings.
    """
    rounds, _, _ = _rounds(saved, log)
    return rounds.next_rows(count)


def learn(saved: Saved, log: DecisionLog, output: Path) -> Learnt:
    """Fit the probe to the references and to the rows that people have decided on, and score all rows again.

    A row that joins the references is one of them from now on, and no label; then every score that compares vectors
    with references is made again.

    Args:
        saved: The scored rows; they are not changed.
        log: The decisions.
        output: Folder that gets the rows, and the references if some have joined them.

    Raises:
        OptionError: The rows have no score with references, or no embeddings, or `output` holds other files.
        DataError: There are not decisions of both kinds, or a row cannot join the references.
    """
    folder = output / SCORED
    require_replaceable(folder, TRAIL)
    rounds, references, joined = _rounds(saved, log)
    labels = rounds.labeled
    if len(set(labels.values())) < 2 and not joined:
        raise DataError(
            "the rows decided so far are not of both kinds, and none is marked as a reference",
            found=f"{sum(labels.values())} dropped or masked, {len(labels) - sum(labels.values())} kept",
            fix="decide on more rows: keep some, and drop some",
        )
    has_probe = any(isinstance(step, ProbeScore) for step in saved.steps)
    taught = len(set(labels.values())) > 1
    probe = rounds.probe() if taught else rounds.probe_of_references() if has_probe else None
    again = rescored(saved, probe=probe, references=references)
    if joined:
        references.save(output / REFERENCES)
    save_again(again, folder)
    said = [f"{joined} of these rows have joined the references"] if joined else []
    if taught:
        said.append(rounds.point().sentence())
    return Learnt(load_rows_with_steps(folder, trust_vectors=saved.trusted), "; ".join(said))


def _rounds(saved: Saved, log: DecisionLog) -> tuple[LabelRounds, ReferenceIndex, int]:
    """The rounds with the decisions as labels, the references they use, and how many rows have joined those."""
    base = base_of(references_of_score(saved))
    sides = _joining(log)
    rows = {side: _rows_with(saved, {name for name, of in sides.items() if of == side}) for side in ("unsafe", "safe")}
    joined = sum(map(len, rows.values()))
    index = base
    if joined:
        index = with_rows(base, rows["unsafe"], rows["safe"], mapping=saved.mapping, source=saved.name)
    return rounds_on(saved, DecidedLabels(log, without=sides), index), index, joined


def _joining(log: DecisionLog) -> dict[str, str]:
    """Row id -> side, of the rows that somebody has marked as references and nobody has left in doubt."""
    sides = {}
    for row_id, decisions in decisions_by_row(log).items():
        if any(decision.reference for decision in decisions):
            sides[row_id] = {"drop": "unsafe", "keep": "safe"}.get(strictest(decisions), "")
    return {row_id: side for row_id, side in sides.items() if side}


def _rows_with(saved: Saved, ids: set[str]) -> Dataset:
    """The rows with these ids, each once."""
    from datasets import concatenate_datasets

    left = set(ids)
    parts = []
    for part in parts_of(saved.rows):
        names = part.select_columns([ROW_ID]).with_format("arrow")[:][ROW_ID].to_pylist() if len(part) else []
        places = []
        for place, name in enumerate(names):
            if name in left:
                left.discard(name)
                places.append(place)
        parts.append(part.select(np.array(places, np.int64)))
    return concatenate_datasets(parts)
