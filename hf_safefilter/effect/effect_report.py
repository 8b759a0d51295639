"""The report of a study: means over seeds with intervals, comparisons of arms, a table and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter.effect.arms import CONTRASTS
from hf_safefilter.effect.ledger import Run
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.storage.atomic import atomic_text

REPORT = "effect.json"

METRICS = ("refusal", "over_refusal", "degenerate", "benign_loss")
"""What is measured: the refused share of harmful prompts, the refused share of prompts that only sound harmful, the
degenerate share of all replies, and the mean loss on held-out benign rows."""

ATTACK = "attack_success"
"""The answered share of harmful prompts: replies that are neither refusals nor degenerate."""

_SHARES = (*METRICS[:3], ATTACK)


def metric(run: Run, name: str) -> float:
    """One of `METRICS`, or `ATTACK`, of a run."""
    measured = run.measured
    if name == "refusal":
        return measured.harmful.refusal
    if name == ATTACK:
        return measured.harmful.answer
    if name == "over_refusal":
        return measured.over_refusal.refusal
    if name == "benign_loss":
        return measured.benign_loss
    sets = (measured.harmful, measured.over_refusal)
    return sum(replies.degenerate for replies in sets) / sum(replies.asked for replies in sets)


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over seeds and its 95 % t-interval, whose ends are None with a single seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], bounds: tuple[float, float] | None = None) -> Mean:
        """Mean of one value a seed; the interval is clipped to `bounds`."""
        from scipy.stats import t

        mean, n = float(np.mean(values)), len(values)
        if n < 2:
            return cls(mean, None, None)
        half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        ends = np.array([mean - half, mean + half])
        low, high = (float(end) for end in (np.clip(ends, *bounds) if bounds else ends))
        return cls(mean, low, high)

    def shown(self, share: bool) -> str:
        """The mean and interval as text: ``95.0% [91, 99]`` for a share, else ``1.128 [1.115, 1.141]``."""
        ends = [] if self.low is None or self.high is None else [self.low, self.high]
        if share:
            return f"{self.mean:.1%}" + (f" [{', '.join(f'{100 * end:.0f}' for end in ends)}]" if ends else "")
        return f"{self.mean:.3f}" + (f" [{', '.join(f'{end:.3f}' for end in ends)}]" if ends else "")


@dataclass(frozen=True, slots=True)
class Contrast:
    """Difference of two arms in refusals of harmful prompts, seed by seed; above zero, the first refuses more."""

    first: str
    second: str
    difference: Mean

    @property
    def sentence(self) -> str:
        """The difference in words, which say so if it may be chance."""
        low, high = self.difference.low, self.difference.high
        by = f"by {abs(self.difference.mean):.3f}"
        if low is None or high is None:
            verdict = f"{'above' if self.difference.mean >= 0 else 'below'} {self.second} {by}, on a single seed"
        elif self.difference.mean and np.isclose(low, high, rtol=0, atol=1e-9):
            # the same with every seed: an interval of no width would claim a certainty that a few seeds cannot give
            verdict = f"{'above' if low > 0 else 'below'} {self.second} {by} with every seed, too alike for an interval"
        elif low > 0 or high < 0:
            verdict = f"{'above' if low > 0 else 'below'} {self.second} {by} [{low:+.3f}, {high:+.3f}]"
        else:
            verdict = f"not told apart from {self.second}: {self.difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"refusals of {self.first}: {verdict}"


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
        """A metric of an arm over the seeds."""
        return Mean.of([metric(run, name) for run in self.of(arm)], (0.0, 1.0) if name in _SHARES else None)

    @property
    def contrasts(self) -> list[Contrast]:
        """Those of `CONTRASTS` whose arms are part of the study."""
        contrasts = []
        for first, second in CONTRASTS:
            if {first, second} <= set(self.arms):
                pairs = zip(self.of(first), self.of(second), strict=True)
                differences = [metric(run, "refusal") - metric(other, "refusal") for run, other in pairs]
                contrasts.append(Contrast(first, second, Mean.of(differences, (-1.0, 1.0))))
        return contrasts

    def table(self) -> list[dict[str, Any]]:
        """One row an arm, for printing; the first is the model before tuning."""
        line = {"arm": "before tuning", "rows": "", "length": ""}
        means = {name: Mean(metric(self.before, name), None, None) for name in METRICS}
        lines = [line | {name: mean.shown(name in _SHARES) for name, mean in means.items()}]
        for arm in self.arms:
            runs = self.of(arm)
            length = np.mean([run.mean_length for run in runs])
            line = {"arm": arm, "rows": str(runs[0].rows), "length": f"{length:.0f}"}
            lines.append(line | {name: self.mean(arm, name).shown(name in _SHARES) for name in METRICS})
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values of the whole report, run by run."""
        return {
            "inputs": dict(self.inputs),
            "counts": dict(self.counts),
            "before": asdict(self.before),
            "arms": {
                arm: {"rows": self.of(arm)[0].rows}
                | {name: asdict(self.mean(arm, name)) for name in (*METRICS, ATTACK)}
                for arm in self.arms
            },
            "contrasts": [asdict(contrast) | {"sentence": contrast.sentence} for contrast in self.contrasts],
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
            "rows": self.counts["rows"],
            "tuning": dict(inputs["tuning"]),
            "seeds": len(inputs["seeds"]),
            "questions": {kind: self.counts[kind] for kind in ("harmful", "over_refusal", "benign")},
            "questions_source": inputs["questions"]["source"],
            "table": self.table(),
            "contrasts": [contrast.sentence for contrast in self.contrasts],
        }

    def write(self, folder: Path) -> None:
        """Write `to_json` to ``effect.json`` in `folder`."""
        atomic_text(folder / REPORT, json.dumps(self.to_json(), indent=1, default=list, allow_nan=False) + "\n")


def read_card_part(folder: Path) -> dict[str, Any]:
    """`EffectReport.for_card()` of the study in `folder`.

    Raises:
        MissingError: `folder` holds no finished study.
        IntegrityError: The report of the study is damaged.
    """
    path = folder / REPORT
    if not path.is_file():
        raise MissingError(f"{folder} holds no finished study", fix="run one: hf-safefilter effect --help")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["card"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged", fix="run the study again: finished runs are kept") from error
