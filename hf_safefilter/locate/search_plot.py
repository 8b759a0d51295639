"""The plot of a search: the measurements by block, with the range that was found shaded, and the verdict above."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.figures import BLUE, GREY, RED, STRIPES, figure

if TYPE_CHECKING:
    from hf_safefilter.locate.safety_layers import SafetyLayers

_WIDE = 88
"""Characters in a line of the title."""


def write_plot(result: SafetyLayers, path: Path) -> None:
    """Write `path` as PNG and SVG; the same result gives the same bytes."""
    draw = {"gap": _gap, "scaling": _scaling, "bounds": _bounds}[result.method]
    with figure(path, max(7, 1.5 + 0.22 * len(_tried(result))), 4) as canvas:
        axes = canvas.subplots()
        draw(axes, result)
        axes.set_title(_title(result), fontsize=10, loc="left")
        canvas.legend(frameon=False, loc="outside lower left", ncols=3, fontsize=9)


def _title(result: SafetyLayers) -> str:
    if not result.signal:
        return textwrap.fill(f"No signal: {result.why}", _WIDE)
    first, last = result.block_range
    chance = result.facts.get("chance")
    return (f"Found: blocks {first} to {last}" if first < last else f"Found: block {first}") + (
        "" if chance is None else f" (as clear by chance with p = {chance:.2g})"
    )


def _shade(axes: Any, result: SafetyLayers) -> None:
    from matplotlib.ticker import MaxNLocator

    if result.signal:
        first, last = result.block_range
        axes.axvspan(first - 0.5, last + 0.5, color=RED, alpha=0.15, linewidth=0, label="blocks found")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block (its output is layer block + 1)")


def _gap(axes: Any, result: SafetyLayers) -> None:
    _draw_gap(axes, result.table)
    _shade(axes, result)


def _draw_gap(axes: Any, table: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot([row["block"] for row in table], [row["gap"] for row in table], color=BLUE, marker="o", markersize=3,
              label="gap between normal and malicious prompts")  # fmt: skip
    axes.set_ylabel("angular gap (degrees)")


def _scaling(axes: Any, result: SafetyLayers) -> None:
    blocks = [row["block"] for row in result.table]
    scores = [row["score"] for row in result.table]
    errors = [[row["score"] - row["low"] for row in result.table], [row["high"] - row["score"] for row in result.table]]
    sure = 100 * (1 - result.facts.get("options", {}).get("level", 0.05))
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.errorbar(blocks, scores, yerr=errors, color=BLUE, fmt="o", markersize=4, capsize=2, linewidth=1,
                  label=f"mean and {sure:.3g} % interval over prompts")  # fmt: skip
    axes.set_ylabel("refusals a prompt,\nblock louder minus quieter")
    _shade(axes, result)


def _tried(result: SafetyLayers) -> list[Mapping[str, Any]]:
    """The ranges that were scaled by the factor of the search, or by any where none was found."""
    ranges = [row for row in result.table if "alpha" in row]
    return [row for row in ranges if row["alpha"] == result.facts.get("alpha")] or ranges


def _bounds(axes: Any, result: SafetyLayers) -> None:
    by, rows = result.facts.get("alpha"), _tried(result)
    if not rows:  # the gap gave no range to start from: it is what was measured
        _draw_gap(axes, result.facts.get("gap", {}).get("table", ()))
        _shade(axes, result)
        return
    names = [f"{row['first']}-{row['last']}" + ("" if by else f" by {row['alpha']:g}") for row in rows]
    bars = axes.bar(range(len(rows)), [row["refusals"] for row in rows], color=BLUE)
    for bar, row in zip(bars, rows, strict=True):
        if result.signal and (row["first"], row["last"]) == (result.first, result.last):
            bar.set(facecolor=RED, label="blocks found", **STRIPES)
    axes.axhline(result.facts.get("unscaled", {}).get("refusal", 0), color="black", linestyle="--", linewidth=1,
                 label="unscaled model")  # fmt: skip
    axes.set_xticks(range(len(rows)), names, rotation=60, fontsize=9)
    axes.set_xlabel(f"blocks scaled by {by:g}" if by else "blocks scaled, and the factor")
    axes.set_ylabel("prompts refused")
