"""Plots of a decision: the distribution of the scores, and the share of dropped rows by source or category."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.figures import BLUE, RED, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_safefilter.publish.provenance import Provenance, Share


def write_plots(folder: Path, scores: np.ndarray, provenance: Provenance) -> None:
    """Write ``plots/scores`` and ``plots/shares`` as PNG and SVG; the same input gives the same bytes."""
    with figure(folder / "plots" / "scores", 7, 4) as canvas:
        _scores(canvas.subplots(), scores, provenance)
    shares = provenance.counts.by_category or provenance.counts.by_source or provenance.counts.by_split
    with figure(folder / "plots" / "shares", 7, 1.2 + 0.28 * len(shares)) as canvas:
        _shares(canvas.subplots(), shares)


def _scores(axes: Axes, scores: np.ndarray, provenance: Provenance) -> None:
    finite = scores[np.isfinite(scores)]
    threshold = provenance.selection.threshold
    low, high = min(finite.min(), threshold), max(finite.max(), threshold)
    step = (high - low) / 60 or 1.0
    # The threshold is an edge, so that no bar holds rows of both sides.
    edges = threshold + step * np.arange(np.floor((low - threshold) / step), np.ceil((high - threshold) / step) + 2)
    sides = [finite[finite < threshold], finite[finite >= threshold]]
    labels = [f"kept ({len(sides[0])})", f"dropped ({len(sides[1])})"]
    axes.hist(sides, bins=edges.tolist(), stacked=True, color=[BLUE, RED], label=labels)
    axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set_yscale("symlog", linthresh=10)
    most = axes.get_ylim()[1]
    ticks = [0, *(digit * 10**power for power in range(8) for digit in (1, 2, 5))]
    axes.set_yticks([tick for tick in ticks if tick == 0 or 2 <= tick <= most], minor=False)
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel(f"{_plain(provenance.selection.column)}: higher = more dangerous to alignment")
    axes.set_ylabel("rows")
    unscored = len(scores) - len(finite)
    axes.set_title(f"{len(scores)} rows" + (f", {unscored} not scored and dropped" if unscored else ""), loc="left")
    axes.legend(frameon=False)


def _shares(axes: Axes, shares: dict[str, Share]) -> None:
    names = [_plain(name)[:40] or "(none)" for name in shares]
    values = [100 * share.dropped / share.rows if share.rows else 0.0 for share in shares.values()]
    positions = np.arange(len(names))
    axes.barh(positions, values, color=RED)
    axes.set_yticks(positions, names)
    axes.invert_yaxis()
    axes.set_xlabel("dropped, % of rows")
    for position, (value, share) in enumerate(zip(values, shares.values(), strict=True)):
        axes.annotate(f" {share.dropped} of {share.rows}", (value, position), va="center", fontsize=8)
    axes.margins(x=0.15)


def _plain(text: str) -> str:
    """The text for matplotlib: with escaped dollar signs (mathematics) and without line breaks."""
    return " ".join(text.split()).replace("$", r"\$")
