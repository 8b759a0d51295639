"""What a study found: means over seeds with intervals, arm against arm, a table and plain values."""

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
"""What is measured: the refused share of harmful prompts (the rest, but for stammering, is the attack's success), the
refused share of prompts that only sound harmful, the share of all replies that are no replies, and the mean loss on
held-out benign rows."""

ATTACK = "attack_success"
"""The answered share of harmful prompts: what is neither refused nor stammered."""

_SHARES = (*METRICS[:3], ATTACK)


def metric(run: Run, name: str) -> float:
    """One of `METRICS`, or `ATTACK`, of a run."""
    found = run.measured
    if name == "refusal":
        return found.harmful.refusal
    if name == ATTACK:
        return found.harmful.answer
    if name == "over_refusal":
        return found.over_refusal.refusal
    if name == "benign_loss":
        return found.benign_loss
    sides = (found.harmful, found.over_refusal)
    return sum(one.degenerate for one in sides) / sum(one.asked for one in sides)


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over seeds and its 95 % t-interval; the ends are None with a single seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], bounds: tuple[float, float] | None = None) -> Mean:
        """From one value a seed; the interval's ends are kept within `bounds`."""
        from scipy.stats import t

        mean, n = float(np.mean(values)), len(values)
        if n < 2:
            return cls(mean, None, None)
        half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        ends = np.array([mean - half, mean + half])
        low, high = (float(end) for end in (np.clip(ends, *bounds) if bounds else ends))
        return cls(mean, low, high)

    def shown(self, share: bool) -> str:
        """E.g. ``95.0% [91, 99]`` for a share, else ``1.128 [1.115, 1.141]``."""
        ends = [] if self.low is None or self.high is None else [self.low, self.high]
        if share:
            return f"{self.mean:.1%}" + (f" [{', '.join(f'{100 * end:.0f}' for end in ends)}]" if ends else "")
        return f"{self.mean:.3f}" + (f" [{', '.join(f'{end:.3f}' for end in ends)}]" if ends else "")


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm against another in refusals of harmful prompts, seed by seed: above zero, the first refuses more."""

    first: str
    second: str
    difference: Mean

    @property
    def sentence(self) -> str:
        """In words; what cannot be told apart from chance is called so."""
        low, high = self.difference.low, self.difference.high
        by = f"by {abs(self.difference.mean):.3f}"
        if low is None or high is None:
            verdict = f"{'above' if self.difference.mean >= 0 else 'below'} {self.second} {by}, on a single seed"
        elif self.difference.mean and np.isclose(low, high, rtol=0, atol=1e-9):
            # alike to a question: an interval of no width would claim a certainty that a few seeds cannot give
            verdict = f"{'above' if low > 0 else 'below'} {self.second} {by} with every seed, too alike for an interval"
        elif low > 0 or high < 0:
            verdict = f"{'above' if low > 0 else 'below'} {self.second} {by} [{low:+.3f}, {high:+.3f}]"
        else:
            verdict = f"not told apart from {self.second}: {self.difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"refusals of {self.first}: {verdict}"


@dataclass(frozen=True, slots=True)
class EffectReport:
    """What `measure_effect` found.

    Attributes:
        inputs: what it was made from.
        counts: rows kept, dropped, unreadable; questions asked, and left out because a model had seen them.
        before: the model as it came.
        runs: every tuned model.
    """

    inputs: Mapping[str, Any]
    counts: Mapping[str, int]
    before: Run
    runs: tuple[Run, ...]

    @property
    def arms(self) -> list[str]:
        """Names, in the order they were asked for."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def mean(self, arm: str, name: str) -> Mean:
        """A metric of an arm over the seeds."""
        return Mean.of([metric(run, name) for run in self.of(arm)], (0.0, 1.0) if name in _SHARES else None)

    @property
    def contrasts(self) -> list[Contrast]:
        """Those of `CONTRASTS` whose arms are there."""
        found = []
        for first, second in CONTRASTS:
            if {first, second} <= set(self.arms):
                pairs = zip(self.of(first), self.of(second), strict=True)
                gaps = [metric(one, "refusal") - metric(other, "refusal") for one, other in pairs]
                found.append(Contrast(first, second, Mean.of(gaps, (-1.0, 1.0))))
        return found

    def table(self) -> list[dict[str, Any]]:
        """One row an arm, for printing; the first is the model before tuning."""
        first = {"arm": "before tuning", "rows": "", "length": ""}
        asked = {name: Mean(metric(self.before, name), None, None) for name in METRICS}
        lines = [first | {name: one.shown(name in _SHARES) for name, one in asked.items()}]
        for arm in self.arms:
            runs = self.of(arm)
            length = np.mean([run.mean_length for run in runs])
            line = {"arm": arm, "rows": str(runs[0].rows), "length": f"{length:.0f}"}
            lines.append(line | {name: self.mean(arm, name).shown(name in _SHARES) for name in METRICS})
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values: everything, run by run."""
        return {
            "inputs": dict(self.inputs),
            "counts": dict(self.counts),
            "before": asdict(self.before),
            "arms": {
                arm: {"rows": self.of(arm)[0].rows}
                | {name: asdict(self.mean(arm, name)) for name in (*METRICS, ATTACK)}
                for arm in self.arms
            },
            "contrasts": [asdict(one) | {"sentence": one.sentence} for one in self.contrasts],
            "runs": [asdict(run) for run in self.runs],
            "card": self.for_card(),
        }

    def for_card(self) -> dict[str, Any]:
        """What a card shows: the table's figures and the sentences, and what they hold for."""
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
            "contrasts": [one.sentence for one in self.contrasts],
        }

    def write(self, folder: Path) -> None:
        """Write `to_json` to ``effect.json``."""
        atomic_text(folder / REPORT, json.dumps(self.to_json(), indent=1, default=list, allow_nan=False) + "\n")


def read_card_part(folder: Path) -> dict[str, Any]:
    """`EffectReport.for_card()` of the study in `folder`.

    Raises:
        MissingError: no finished study there.
        IntegrityError: a damaged one.
    """
    path = folder / REPORT
    if not path.is_file():
        raise MissingError(f"{folder} holds no finished study", fix="make it: hf-safefilter effect --help")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["card"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged", fix="run effect again: finished runs are kept") from error
