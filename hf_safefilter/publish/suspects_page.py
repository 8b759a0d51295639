"""One self-contained page of the rows that a person should look at: no script, no request, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.publish.plots import edges_at

if TYPE_CHECKING:
    from hf_safefilter.decide.explanations import Explanation
    from hf_safefilter.decide.select import IsSafe

_TEMPLATE = Path(__file__).parents[1] / "cards" / "suspects.html.j2"
_BARS = 60
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _TALL = 720, 190, 56, 30, 24, 120
"""Size of the histogram and of its margins, and height of its largest bar, in pixels."""


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
        kept=int((finite < is_safe.threshold).sum()),
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        floor=_TOP + _TALL,
        **_histogram(finite, is_safe.threshold),
    )


def _histogram(finite: np.ndarray, threshold: float) -> dict[str, Any]:
    """The histogram: a rectangle for each bin, ticks of both axes, and the place of the threshold.

    Heights are by the square root of the number of rows. The threshold is an edge, so that no bar holds rows of both
    sides.
    """
    edges = np.array(edges_at(finite, threshold, _BARS))
    counts, _ = np.histogram(finite, bins=edges)
    most = max(1, int(counts.max()))

    def across(value: float) -> float:
        return round(_LEFT + float((value - edges[0]) / (edges[-1] - edges[0])) * (_WIDTH - _LEFT - _RIGHT), 2)

    def tall(count: int) -> float:
        return round(_TALL * math.sqrt(count / most), 2)

    bars = [
        {
            "x": across(edges[at]),
            "width": max(1.0, across(edges[at + 1]) - across(edges[at]) - 1),
            "height": tall(count),
            "dropped": edges[at] >= threshold,
            "title": f"{edges[at]:.4g} to {edges[at + 1]:.4g}: {count:,} rows",
        }
        for at, count in enumerate(counts.tolist())
        if count
    ]
    heights = [count for count in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000) if tall(count) <= _TALL - 14]
    return {
        "bars": bars,
        "counts": [{"y": _TOP + _TALL - tall(count), "text": f"{count:,}"} for count in (0, *heights, most)],
        "values": [{"x": across(value), "text": text} for value, text in _ticks(float(edges[0]), float(edges[-1]))],
        "threshold_x": across(threshold) if math.isfinite(threshold) else None,
    }


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers between two, with as many digits as tell them apart."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    values = [float(value) for value in found if low <= value <= high]
    for digits in range(4, 18):
        texts = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(texts):
            break
    return list(zip(values, texts, strict=True))
