"""One picture of a search: what was measured, block by block, with what was found shaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.figures import BLUE, GREY, RED, figure

if TYPE_CHECKING:
    from hf_safefilter.locate.safety_layers import SafetyLayers


def write_plot(found: SafetyLayers, path: Path) -> None:
    """Write `path` as PNG and SVG; the same result gives the same bytes."""
    draw = {"gap": _gap, "scaling": _scaling, "bounds": _bounds}[found.method]
    with figure(path, 7, 4) as drawn:
        axes = drawn.subplots()
        draw(axes, found)
        axes.set_title(_title(found), fontsize=10, loc="left")


def _title(found: SafetyLayers) -> str:
    if not found.signal:
        return f"No signal: {found.why}"
    return f"Blocks {found.first} to {found.last}" if found.first < found.last else f"Block {found.first}"


def _shade(axes: Any, found: SafetyLayers) -> None:
    from matplotlib.ticker import MaxNLocator

    if found.signal:
        axes.axvspan(found.first - 0.5, found.last + 0.5, color=RED, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block (its output is layer block + 1)")


def _gap(axes: Any, found: SafetyLayers) -> None:
    blocks = [row["block"] for row in found.table]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(blocks, [row["gap"] for row in found.table], color=BLUE, marker="o", markersize=3)
    axes.set_ylabel("angular gap (degrees)")
    _shade(axes, found)


def _scaling(axes: Any, found: SafetyLayers) -> None:
    blocks = [row["block"] for row in found.table]
    scores = [row["score"] for row in found.table]
    reach = [[row["score"] - row["low"] for row in found.table], [row["high"] - row["score"] for row in found.table]]
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.errorbar(blocks, scores, yerr=reach, color=BLUE, fmt="o", markersize=4, capsize=2, linewidth=1)
    axes.set_ylabel("refusals, louder minus quieter (a prompt)")
    _shade(axes, found)


def _bounds(axes: Any, found: SafetyLayers) -> None:
    by = found.facts.get("alpha")
    rows = [row for row in found.table if row["alpha"] == by] or list(found.table)
    names = [f"{row['first']}-{row['last']}" for row in rows]
    colors = [RED if found.signal and (row["first"], row["last"]) == (found.first, found.last) else BLUE
              for row in rows]  # fmt: skip
    axes.bar(range(len(rows)), [row["refusals"] for row in rows], color=colors)
    axes.axhline(found.facts.get("unscaled", {}).get("refusal", 0), color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(rows)), names, rotation=60, fontsize=8)
    axes.set_xlabel(f"blocks scaled by {by:g} (dashed: unscaled)" if by else "blocks scaled")
    axes.set_ylabel("refusals")
