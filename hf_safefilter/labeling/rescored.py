"""Rows scored again: with another probe, or with other references, in place of those before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_safefilter.data.splits import column_names, each_split
from hf_safefilter.engine.local import add_ranks, score_rows
from hf_safefilter.scores.base import ReferenceScore
from hf_safefilter.scores.probe import Probe, ProbeScore
from hf_safefilter.scores.ranks import Ranks, RankScore

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.saved.saved_rows import Saved
    from hf_safefilter.step import Step


def rescored(
    saved: Saved,
    *,
    probe: Probe | None = None,
    references: ReferenceIndex | None = None,
    instead_of: Collection[str] = (),
) -> Saved:
    """The rows with new scores in the columns of the old ones; the rows' other columns stay.

    Args:
        saved: The scored rows; they are not changed.
        probe: Scores the rows in place of their probes at the same layers, alone and in an ensemble; or of their probe
            at other ones, or beside their other scores if they have none.
        references: What a score that compares vectors with references compares them with from now on. Scores that a
            model was needed for, such as gradients, stay as they are.
        instead_of: Digests of the references in whose place they come: scores with others stay as they are.

    Combined ranks are ranked anew if a score among them is.
    """
    old: dict[Step, Step] = {} if probe is None else {step: replace(step, probe=probe) for step in _of(probe, saved)}
    for step in saved.steps:
        if references is not None and isinstance(step, ReferenceScore):
            if step.references_digest in instead_of and step.references_digest != references.digest:
                old[step] = replace(step, references=references)
    new = list(old.values())
    if probe is not None and not any(isinstance(step, ProbeScore) for step in new):
        new.append(ProbeScore(probe))
    filled = {column for step in new for column in step.produces()}
    ranks = [step for step in saved.steps if isinstance(step, RankScore) and filled & set(step.needs())]
    gone = {column for step in (*old, *ranks) for column in step.produces()}
    rows = each_split(saved.rows, lambda part: part.remove_columns([c for c in column_names(part) if c in gone]))
    for step in new:
        rows = score_rows(rows, step)
    steps = [step for step in saved.steps if step not in old and step not in ranks] + new
    for rank in ranks:
        rows, step = add_ranks(rows, Ranks.of(rank.ranks).columns, rank.METHOD)
        steps.append(step)
    return replace(saved, rows=rows, steps=steps)


def _of(probe: Probe, saved: Saved) -> list[ProbeScore]:
    """The scores whose probe is another one of the same layers; if there are none, the probe of other layers."""
    steps = [step for step in saved.steps if isinstance(step, ProbeScore)]
    alike = [step for step in steps if Probe.of(step.probe).layers == probe.layers]
    return alike or [step for step in steps if type(step) is ProbeScore]
