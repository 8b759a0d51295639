"""Plots of a decision: the distribution of the scores, and the share of dropped rows by source or category."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.figures import BLUE, RED, STRIPES, drawable, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_safefilter.decide.verdict import Verdict
    from hf_safefilter.publish.provenance import Counts, Provenance, Share

_BINS = 60
_LINEAR = 10
"""Number of rows up to which the scale is linear; above, it is that of the logarithm."""

_WIDE = 88
"""Characters in a line of a title."""


def write_plots(folder: Path, scores: np.ndarray, provenance: Provenance) -> None:
    """Write ``plots/scores`` and ``plots/shares`` as PNG and SVG; the same input gives the same bytes."""
    with figure(folder / "plots" / "scores", 7, 4) as canvas:
        _scores(canvas, scores, provenance)
    by, shares = shares_drawn(provenance.counts)
    with figure(folder / "plots" / "shares", 7, 1.5 + 0.28 * len(shares)) as canvas:
        _shares(canvas.subplots(), by, shares, provenance.counts)


def shares_drawn(counts: Counts) -> tuple[str, Mapping[str, Share]]:
    """By what the dropped rows are counted in the second plot, and the counts: the finest that there is."""
    by_all = {"category": counts.by_category, "source": counts.by_source, "split": counts.by_split}
    return next((by, shares) for by, shares in by_all.items() if shares or by == "split")


def in_short(verdict: Verdict) -> str:
    """A verdict and the figures behind it, without the name of the score: "beats length, AUROC 0.81 (0.77 to 0.85)"."""
    figures = []
    for name, found in (("AUROC", verdict.auroc), (f"{verdict.measure} of held-out references", verdict.held_out)):
        if found is not None:
            figures.append(f"{name} {found.value:.2f} ({found.low:.2f} to {found.high:.2f})")
    if verdict.auroc is not None and verdict.length_auroc is not None:
        figures.append(f"length alone {verdict.length_auroc:.2f}, chance 0.50")
    return ", ".join([verdict.finding, *figures])


def _scores(canvas: Figure, scores: np.ndarray, provenance: Provenance) -> None:
    axes = canvas.subplots()
    finite, threshold = scores[np.isfinite(scores)], provenance.selection.threshold
    sides = [finite[finite < threshold], finite[finite >= threshold]]
    labels = [f"{len(sides[0]):,} below the threshold", f"{len(sides[1]):,} at it or above"]
    if provenance.selection.action == "drop" and provenance.review is None:  # else a side is not all of one kind
        labels = [f"kept: {labels[0]}", f"dropped: {labels[1]}"]
    edges = edges_at(finite, threshold, _BINS)
    axes.hist(sides, bins=edges, stacked=True, color=[BLUE, RED], label=labels)
    for bar in axes.containers[1]:
        bar.set(**STRIPES)
    if math.isfinite(threshold):
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yscale("symlog", linthresh=_LINEAR)
    most = max(1.0, axes.get_ylim()[1])
    digits, least = (1, 2, 5) if most < 10_000 else (1,), 1 if most < _LINEAR else 2
    ticks = [digit * 10**power for power in range(10) for digit in digits] if most >= _LINEAR else [*range(1, _LINEAR)]
    axes.set_yticks([0, *(tick for tick in ticks if least <= tick <= most)], minor=False)
    axes.set_ylim(0, most)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    column = drawable(provenance.selection.column, "score")
    axes.set_xlabel(f"{column}: higher = more dangerous to alignment")
    axes.set_ylabel(f"rows (above {_LINEAR}: log scale)")
    lines = [f"{len(scores):,} rows" + (f", {len(scores) - len(finite):,} not scored" * (len(finite) < len(scores)))]
    if (verdict := provenance.judged()) is not None:
        lines += textwrap.wrap(f"verdict: {in_short(verdict)}", _WIDE)
    axes.set_title("\n".join(lines), loc="left", fontsize=10)
    canvas.legend(frameon=False, loc="outside lower left", ncols=3, fontsize=9)


def edges_at(finite: np.ndarray, threshold: float, bins: int) -> list[float]:
    """Edges of about so many bars. The threshold is one of them, so that no bar holds rows of both sides."""
    ends = [*([finite.min(), finite.max()] if len(finite) else []), *([threshold] if math.isfinite(threshold) else [])]
    low, high = (float(min(ends)), float(max(ends))) if ends else (0.0, 0.0)
    middle, size = threshold if math.isfinite(threshold) else low, max(abs(low), abs(high))
    if low == high:
        low, high = low - max(0.5, 0.1 * size), high + max(0.5, 0.1 * size)
    step = max((high - low) / bins, 4 * float(np.spacing(size)))  # a smaller one is lost in rounding
    edges = middle + step * np.arange(np.floor((low - middle) / step), np.ceil((high - middle) / step) + 2)
    return [float(edge) for edge in edges]


def _shares(axes: Axes, by: str, shares: Mapping[str, Share], counts: Counts) -> None:
    names = [drawable(name, f"line {line} of the table") or "(none)" for line, name in enumerate(shares, 1)]
    values = [_percent(share.dropped, share.rows) for share in shares.values()]
    positions = np.arange(len(names))
    axes.barh(positions, values, facecolor=RED, **STRIPES)
    axes.set_yticks(positions, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    every = _percent(counts.dropped, counts.rows)
    axes.axvline(every, color="black", linewidth=1, linestyle="--", label=f"all rows: {every:.3g} %")
    axes.set_xlabel("dropped, % of the rows of each bar")
    axes.set_ylabel(by)
    for position, (value, share) in enumerate(zip(values, shares.values(), strict=True)):
        words = f"{share.dropped:,} of {share.rows:,}"
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.annotate(
            words, (value, position), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=behind
        )
    axes.set_xlim(0, 1.3 * max(*values, every) or 1)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(100, axes.get_xlim()[1])])
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)


def _percent(dropped: int, rows: int) -> float:
    return 100 * dropped / rows if rows else 0.0
