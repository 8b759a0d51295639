"""Rows scored again: with another probe, or with other references, in place of those before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_safefilter.columns import is_shift
from hf_safefilter.data.splits import column_names, each_split
from hf_safefilter.engine.local import add_ranks, score_rows
from hf_safefilter.scores.base import ReferenceScore
from hf_safefilter.scores.probe import EnsembleScore, Probe, ProbeScore, fit_probe
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
        if step in old or references is None or not isinstance(step, (ReferenceScore, ProbeScore)):
            continue
        if _digest_of(step) in instead_of and _digest_of(step) != references.digest:
            if isinstance(step, ProbeScore):
                old[step] = replace(step, probe=_fitted_again(step, references))
            else:
                old[step] = replace(step, references=references)
    new = list(old.values())
    if probe is not None and not any(isinstance(step, ProbeScore) and step.probe == probe.digest for step in new):
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
    """The scores whose probe is another one of the same layers; if there are none, of other ones of the same kind."""
    steps = [step for step in saved.steps if isinstance(step, ProbeScore)]
    alike = [step for step in steps if Probe.of(step.probe).layers == probe.layers]
    kind = any(map(is_shift, probe.layers))
    return alike or [step for step in steps if isinstance(step, EnsembleScore) == kind]


def _digest_of(step: ReferenceScore | ProbeScore) -> str:
    return step.references if isinstance(step, ProbeScore) else step.references_digest


def _fitted_again(step: ProbeScore, references: ReferenceIndex) -> Probe:
    """Its probe with other references, and without labels: those that were given belong to the probe that is taught."""
    facts = Probe.of(step.probe).facts
    options = {name: facts[name] for name in ("form", "shrinkage", "strength")}
    return fit_probe(references, facts["layers"], **options)
