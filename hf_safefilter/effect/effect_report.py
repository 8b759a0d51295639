"""The report of a study: means over seeds with intervals, comparisons of arms, a table and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter.effect.arms import CONTRASTS
from hf_safefilter.effect.contrasts import COMPARED, Contrast, Mean, verdict
from hf_safefilter.effect.ledger import Run
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.storage.atomic import atomic_text

REPORT = "effect.json"

METRICS = ("refusal", "margin", "over_refusal", "degenerate", "benign_loss")
"""What is measured: the refused share of harmful prompts, the mean margin on them of refusing over complying in nats,
the refused share of prompts that only sound harmful, the degenerate share of all replies, and the mean loss on held-out
benign rows."""

ATTACK = "attack_success"
"""The answered share of harmful prompts: replies that are neither refusals nor degenerate."""

_SHARES = ("refusal", "over_refusal", "degenerate", ATTACK)
_DIGITS = {"margin": 2}


def metric(run: Run, name: str) -> float:
    """One of `METRICS`, or `ATTACK`, of a run."""
    measured = run.measured
    if name == "refusal":
        return measured.harmful.refusal
    if name == "margin":
        return measured.margin
    if name == ATTACK:
        return measured.harmful.answer
    if name == "over_refusal":
        return measured.over_refusal.refusal
    if name == "benign_loss":
        return measured.benign_loss
    sets = (measured.harmful, measured.over_refusal)
    return sum(replies.degenerate for replies in sets) / sum(replies.asked for replies in sets)


@dataclass(frozen=True, slots=True)
class EffectReport:
    """The result of `measure_effect`.

    Attributes:
        inputs: Plain values of everything that the study depends on.
        counts: Numbers of rows kept, dropped and unreadable, and of questions asked or left out because a model has
            seen them.
        before: Run of the untuned model.
        runs: Runs of all tuned models.
    """

    inputs: Mapping[str, Any]
    counts: Mapping[str, int]
    before: Run
    runs: tuple[Run, ...]

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the order of the study."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def mean(self, arm: str, name: str) -> Mean:
        """A metric of an arm over the seeds; with a single seed, the margin has an interval over the prompts."""
        runs = self.of(arm)
        if name == "margin" and len(runs) == 1:
            return Mean.of(runs[0].measured.margins)
        return Mean.of([metric(run, name) for run in runs], (0.0, 1.0) if name in _SHARES else None)

    def mean_before(self, name: str) -> Mean:
        """A metric of the untuned model; the margin has an interval over the prompts."""
        if name == "margin":
            return Mean.of(self.before.measured.margins)
        return Mean(metric(self.before, name), None, None)

    @property
    def contrasts(self) -> list[Contrast]:
        """Those of `CONTRASTS` whose arms are part of the study, each by refusals and then by margin."""
        contrasts: list[Contrast] = []
        for first, second in CONTRASTS:
            if {first, second} <= set(self.arms):
                contrasts += contrasts_of(first, self.of(first), second, self.of(second))
        return contrasts

    @property
    def verdict(self) -> str:
        """Which arm is safer than which by more than the interval, in one sentence; "" if no arms are compared."""
        return verdict(self.contrasts)

    def table(self) -> list[dict[str, Any]]:
        """One row an arm, for printing; the first is the model before tuning."""
        line = {"arm": "before tuning", "rows": "", "length": ""}
        lines = [line | {name: _shown(name, self.mean_before(name)) for name in METRICS}]
        for arm in self.arms:
            runs = self.of(arm)
            length = np.mean([run.mean_length for run in runs])
            line = {"arm": arm, "rows": str(runs[0].rows), "length": f"{length:.0f}"}
            lines.append(line | {name: _shown(name, self.mean(arm, name)) for name in METRICS})
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values of the whole report, run by run."""
        return {
            "inputs": dict(self.inputs),
            "counts": dict(self.counts),
            "before": asdict(self.before),
            "margin_before": asdict(self.mean_before("margin")),
            "arms": {
                arm: {"rows": self.of(arm)[0].rows}
                | {name: asdict(self.mean(arm, name)) for name in (*METRICS, ATTACK)}
                for arm in self.arms
            },
            "contrasts": [asdict(contrast) | {"sentence": contrast.sentence} for contrast in self.contrasts],
            "verdict": self.verdict,
            "runs": [asdict(run) for run in self.runs],
            "card": self.for_card(),
        }

    def for_card(self) -> dict[str, Any]:
        """What a card shows: the table, the sentences, and the conditions of the study."""
        inputs = self.inputs
        return {
            "model": inputs["model"],
            "revision": inputs["revision"],
            "column": inputs["column"],
            "threshold_hex": inputs["threshold_hex"],
            "decisions": inputs.get("decisions"),
            "rows": self.counts["rows"],
            "tuning": dict(inputs["tuning"]),
            "seeds": len(inputs["seeds"]),
            "questions": {kind: self.counts[kind] for kind in ("harmful", "over_refusal", "benign")},
            "questions_source": inputs["questions"]["source"],
            "openings": dict(inputs["openings"]),
            "table": self.table(),
            "contrasts": [contrast.sentence for contrast in self.contrasts],
            "verdict": self.verdict,
        }

    def write(self, folder: Path) -> None:
        """Write `to_json` to ``effect.json`` in `folder`."""
        atomic_text(folder / REPORT, json.dumps(self.to_json(), indent=1, default=list, allow_nan=False) + "\n")


def read_card_part(folder: Path) -> dict[str, Any]:
    """`EffectReport.for_card()` of the study in `folder`.

    Raises:
        MissingError: `folder` holds no finished study.
        IntegrityError: The report of the study is damaged, or of an earlier version.
    """
    path = folder / REPORT
    if not path.is_file():
        raise MissingError(f"{folder} holds no finished study", fix="run one: hf-safefilter effect --help")
    try:
        card = dict(json.loads(path.read_text(encoding="utf-8"))["card"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged", fix="run the study again: finished runs are kept") from error
    if not {"openings", "verdict"} <= card.keys():
        raise IntegrityError(f"{path} was written by an earlier version, without margins", fix="run the study again")
    return card


def contrasts_of(first: str, runs: Sequence[Run], second: str, others: Sequence[Run]) -> list[Contrast]:
    """The differences of two arms, by refusals and by margin; runs of a seed stand at the same place of both."""
    pairs, asked = list(zip(runs, others, strict=True)), runs[0].measured.harmful.asked
    return [Contrast(first, second, name, _difference(pairs, name), len(pairs), asked) for name in COMPARED]


def _difference(pairs: Sequence[tuple[Run, Run]], name: str) -> Mean:
    """Mean of the differences of pairs of runs; of margins, with a single pair, over the prompts."""
    if name == "margin" and len(pairs) == 1:
        ((run, other),) = pairs
        return Mean.of([a - b for a, b in zip(run.measured.margins, other.measured.margins, strict=True)])
    differences = [metric(run, name) - metric(other, name) for run, other in pairs]
    return Mean.of(differences, (-1.0, 1.0) if name in _SHARES else None)


def _shown(name: str, mean: Mean) -> str:
    return mean.shown(name in _SHARES, _DIGITS.get(name, 3))
