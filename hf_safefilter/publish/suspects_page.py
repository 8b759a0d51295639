"""One self-contained page of the rows that a person should look at: no script, no request, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hf_safefilter.decide.explanations import Explanation
    from hf_safefilter.decide.select import IsSafe

_TEMPLATE = Path(__file__).parents[1] / "cards" / "suspects.html.j2"
_BARS, _WIDTH, _HEIGHT = 60, 720, 120


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row to look at.

    Attributes:
        group: Why it is looked at.
        row: Its number, from 0, in its split.
        explanation: Why it has its score.
        text: What it says, where that is wanted.
        split: Its split; "" for rows without splits.
    """

    group: str
    row: int
    explanation: Explanation
    text: str = ""
    split: str = ""

    @property
    def place(self) -> str:
        """Where it stands: its number, after the name of its split."""
        return f"{self.split} {self.row}".lstrip()

    def to_json(self) -> dict[str, Any]:
        """Plain values; a score that is not a number is null."""
        body = asdict(self.explanation) | {"words": self.explanation.words}
        body["score"] = body["score"] if math.isfinite(body["score"]) else None
        return (
            {"group": self.group, "split": self.split, "row": self.row}
            | body
            | ({"text": self.text} if self.text else {})
        )


def page(suspects: Sequence[Suspect], scores: np.ndarray, is_safe: IsSafe) -> str:
    """HTML of `suspects` under a histogram of all `scores` (n,)."""
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE.read_text("utf-8"))
    finite = scores[np.isfinite(scores)]
    groups: dict[str, list[Suspect]] = {}
    for suspect in suspects:
        groups.setdefault(suspect.group, []).append(suspect)
    return template.render(
        groups=groups,
        column=is_safe.column,
        threshold=is_safe.threshold,
        rule=is_safe.rule,
        dropped=int((finite >= is_safe.threshold).sum()),
        unscored=len(scores) - len(finite),
        rows=len(scores),
        bars=_bars(finite, is_safe.threshold),
        width=_WIDTH,
        height=_HEIGHT,
    )


def _bars(finite: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """The histogram: one rectangle a bin, its height by the square root of the number of rows."""
    if not len(finite):
        return []
    low, high = float(finite.min()), float(finite.max())
    counts, edges = np.histogram(finite, bins=_BARS, range=(low, high if high > low else low + 1))
    wide, most = _WIDTH / _BARS, math.sqrt(counts.max())
    return [
        {
            "x": at * wide,
            "width": wide - 1,
            "height": _HEIGHT * math.sqrt(count) / most,
            "dropped": edges[at] >= threshold,
            "title": f"{edges[at]:.3g} to {edges[at + 1]:.3g}: {count} rows",
        }
        for at, count in enumerate(counts)
        if count
    ]
