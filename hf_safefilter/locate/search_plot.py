"""The plot of a search: the measurements by block, with the range that was found shaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.figures import BLUE, GREY, RED, figure

if TYPE_CHECKING:
    from hf_safefilter.locate.safety_layers import SafetyLayers


def write_plot(result: SafetyLayers, path: Path) -> None:
    """Write `path` as PNG and SVG; the same result gives the same bytes."""
    draw = {"gap": _gap, "scaling": _scaling, "bounds": _bounds}[result.method]
    with figure(path, 7, 4) as canvas:
        axes = canvas.subplots()
        draw(axes, result)
        axes.set_title(_title(result), fontsize=10, loc="left")


def _title(result: SafetyLayers) -> str:
    if not result.signal:
        return f"No signal: {result.why}"
    first, last = result.block_range
    return f"Blocks {first} to {last}" if first < last else f"Block {first}"


def _shade(axes: Any, result: SafetyLayers) -> None:
    from matplotlib.ticker import MaxNLocator

    if result.signal:
        first, last = result.block_range
        axes.axvspan(first - 0.5, last + 0.5, color=RED, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block (its output is layer block + 1)")


def _gap(axes: Any, result: SafetyLayers) -> None:
    blocks = [row["block"] for row in result.table]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(blocks, [row["gap"] for row in result.table], color=BLUE, marker="o", markersize=3)
    axes.set_ylabel("angular gap (degrees)")
    _shade(axes, result)


def _scaling(axes: Any, result: SafetyLayers) -> None:
    blocks = [row["block"] for row in result.table]
    scores = [row["score"] for row in result.table]
    errors = [[row["score"] - row["low"] for row in result.table], [row["high"] - row["score"] for row in result.table]]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.errorbar(blocks, scores, yerr=errors, color=BLUE, fmt="o", markersize=4, capsize=2, linewidth=1)
    axes.set_ylabel("refusals, louder minus quieter (a prompt)")
    _shade(axes, result)


def _bounds(axes: Any, result: SafetyLayers) -> None:
    by = result.facts.get("alpha")
    rows = [row for row in result.table if row["alpha"] == by] or list(result.table)
    names = [f"{row['first']}-{row['last']}" for row in rows]
    colors = [RED if result.signal and (row["first"], row["last"]) == (result.first, result.last) else BLUE
              for row in rows]  # fmt: skip
    axes.bar(range(len(rows)), [row["refusals"] for row in rows], color=colors)
    axes.axhline(result.facts.get("unscaled", {}).get("refusal", 0), color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(rows)), names, rotation=60, fontsize=8)
    axes.set_xlabel(f"blocks scaled by {by:g} (dashed: unscaled)" if by else "blocks scaled")
    axes.set_ylabel("refusals")
