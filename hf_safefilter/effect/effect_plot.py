"""The plot of a study: a dot for each seed, mean and interval of each arm, a dashed line for the untuned model."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from hf_safefilter.effect.effect_report import EffectReport, metric
from hf_safefilter.figures import BLUE, GREY, RED, figure

_PANELS = {
    "refusal": "harmful prompts refused, share",
    "margin": "margin of refusing, nats (shaded: complies)",
    "over_refusal": "harmless-but-odd prompts refused, share",
    "benign_loss": "loss on held-out benign rows, nats a token",
}
_COLOURS = {"kept": BLUE, "dropped": RED}
_WIDE = 100
"""Characters in a line of the title."""


def draw(report: EffectReport, path: Path) -> None:
    """Write ``path.png`` and ``path.svg``."""
    with figure(path, 8.5, 2.6 + 0.7 * len(report.arms)) as canvas:
        panels = canvas.subplots(2, 2, sharey=True)
        for axes, (name, title) in zip(panels.flat, _PANELS.items(), strict=True):
            _panel(axes, report, name)
            axes.set_xlabel(title)
            if name in ("refusal", "over_refusal"):
                axes.set_xlim(-0.03, 1.03)
            if name == "margin":
                _shade_below_zero(axes)
        for axes in panels[:, 0]:
            axes.set_ylabel("tuned on")
        panels[0, 0].set_yticks(range(len(report.arms)), [arm.replace("_", " ") for arm in report.arms])
        panels[0, 0].set_ylim(len(report.arms) - 0.5, -0.5)
        canvas.suptitle(textwrap.fill(report.verdict, _WIDE), x=0.01, ha="left", fontsize=10)
        seeds = len(report.of(report.arms[0]))
        ends = (
            "mean and 95 % interval over seeds" if seeds > 1 else "mean; of the margin with 95 % interval over prompts"
        )
        dots = f"one of {seeds} seeds" if seeds > 1 else "the only seed"
        named = {"before tuning": _line("--", "black"), dots: _line("", GREY, "o", 3),
                 ends: _line("-", GREY, "|", 12)}  # fmt: skip
        canvas.legend(named.values(), named.keys(), frameon=False, loc="outside lower left", ncols=3, fontsize=9)


def _line(style: Any, colour: str, mark: str = "", size: float = 0) -> Any:
    """A sample of a line for the legend, which stands for every colour."""
    from matplotlib.lines import Line2D

    edge = 2 if mark == "|" else 1
    return Line2D([], [], linestyle=style, color=colour, marker=mark, markersize=size, markeredgewidth=edge)


def _shade_below_zero(axes: Any) -> None:
    left, right = axes.get_xlim()
    if left < 0:
        axes.axvspan(left, min(0.0, right), color=GREY, alpha=0.15, linewidth=0)
        axes.set_xlim(left, right)


def _panel(axes: Any, report: EffectReport, name: str) -> None:
    axes.axvline(metric(report.before, name), color="black", linewidth=1, linestyle="--")
    for row, arm in enumerate(report.arms):
        colour = _COLOURS.get(arm.split("+")[0], GREY)
        mean = report.mean(arm, name)
        if mean.low is not None:
            axes.plot([mean.low, mean.high], [row, row], color=colour, linewidth=2)
        values = [metric(run, name) for run in report.of(arm)]
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=3, alpha=0.6)
        axes.plot([mean.mean], [row], "|", color=colour, markersize=14, markeredgewidth=2)
