"""The plot of a study: a dot for each seed, mean and interval of each arm, a dashed line for the untuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_safefilter.effect.effect_report import EffectReport, metric
from hf_safefilter.figures import BLUE, GREY, RED, figure

_PANELS = {
    "refusal": "harmful prompts refused",
    "margin": "margin, nats (grey: complies)",
    "over_refusal": "harmless-but-odd prompts refused",
    "benign_loss": "loss on held-out benign rows",
}
_COLOURS = {"kept": BLUE, "dropped": RED}


def draw(report: EffectReport, path: Path) -> None:
    """Write ``path.png`` and ``path.svg``."""
    with figure(path, 14, 1.6 + 0.42 * len(report.arms)) as canvas:
        panels = canvas.subplots(1, len(_PANELS), sharey=True)
        for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
            _panel(axes, report, name)
            axes.set_xlabel(title)
            if name in ("refusal", "over_refusal"):
                axes.set_xlim(-0.03, 1.03)
            if name == "margin":
                _shade_below_zero(axes)
        panels[0].set_yticks(range(len(report.arms)), [arm.replace("_", " ") for arm in report.arms])
        panels[0].invert_yaxis()
        seeds = len(report.of(report.arms[0]))
        panels[0].set_title(f"{seeds} seed{'s' if seeds > 1 else ''}; dashed: before tuning", loc="left")


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
