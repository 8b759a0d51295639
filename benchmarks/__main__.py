"""All measurements of speed, one after the other: one table and one plot.

    python -m benchmarks --output out/benchmarks           # an hour on two quiet cores
    python -m benchmarks --output out/benchmarks --quick   # smaller sizes, fewer rounds; a few minutes
    python -m benchmarks --only scoring,locate

Each is a program of its own (`python -m benchmarks.scoring --help`) that prints more than stands in the table. What was
measured already in the output folder is not measured again, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.figures import BLUE, GREY, RED, figure

Figures = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: was measured.
        baseline: what it is compared with.
        ratio: how many times as fast.
        share: of what the machine can do at most, 0..1; None where that is not known.
        note: memory, differences and the like.
    """

    what: str
    baseline: str
    ratio: float | None = None
    share: float | None = None
    note: str = ""


def embedding(found: Figures) -> Iterator[Line]:
    """Lines of `benchmarks.embed`."""
    ours = found["variants"]["ours"]
    tokens = (
        f"{found['head']} of {found['tokens'] / found['rows']:.0f} tokens a row in common (counted once in the share)"
    )
    note = f"{tokens}, {ours['memory_mb']:.0f} MB, largest difference {ours['largest_relative_difference']:.0e}"
    yield Line("embedding, float32", "LARF's loop", ours["ratio"], ours["distinct_share_of_peak"], note)
    rough = found["variants"]["bfloat16"]
    note = f"largest difference {rough['largest_relative_difference']:.0e}"
    yield Line("embedding, bfloat16", "LARF's loop, float32", rough["ratio"], None, note)


def scoring(found: Figures) -> Iterator[Line]:
    """Lines of `benchmarks.scoring`."""
    floor = found["scores"]["limit"]["seconds"]
    size = f"{found['rows']:,} x {found['width']}"
    for name in ("larf", "nearest"):
        every = ", ".join(f"{one / 2**20:.0f}" for one in found["memory"][name])
        share = floor / found["scores"][name]["seconds"]
        sizes = " / ".join(f"{size:,}" for size in found["sizes"])
        yield Line(
            f"score {name}, {size}", "read + one product", share, min(1.0, share), f"MiB at {sizes} rows: {every}"
        )
    fits, splits = found["fits"], found["splits"]
    ratio = fits["numpy svd"]["seconds"] / fits["fit_saft"]["seconds"]
    yield Line(f"fit SAFT, {found['fit_rows']:,} x {found['fit_width']}", "numpy.linalg.svd", ratio)
    ratio = splits["filter + flatten_indices"]["seconds"] / splits["split"]["seconds"]
    share = splits["copy"]["seconds"] / splits["split"]["seconds"]
    yield Line(f"split {found['rows']:,} rows of text", "filter + flatten_indices", ratio, min(1.0, share))


def gradients(found: Figures) -> Iterator[Line]:
    """Lines of `benchmarks.gradient`."""
    for name, baseline in (("published", "published loop"), ("kindest", "one pass, row by row")):
        one = found["variants"][name]
        note = f"largest difference {found['variants']['ours']['largest_difference']:.0e}"
        yield Line("gradient matching", baseline, one["ratio"], None, note)


def locating(found: Figures) -> Iterator[Line]:
    """Lines of `benchmarks.locate`."""
    note = f"largest difference of a count {found['largest_difference']}, {found['cells']} scalings"
    yield Line("layer search by scaling", "LARF's loop", found["ratio"], None, note)


def planning(found: Figures) -> Iterator[Line]:
    """Lines of `benchmarks.plan`."""
    note = f"said / taken: {found['calibrated, median']:.2f} calibrated, {found['assumed, median']:.2f} assumed"
    yield Line("plan, time of a run", "the run itself", None, None, note)


def resuming(found: Figures) -> Iterator[Line]:
    """Lines of `benchmarks.resume`."""
    note = f"{found['kills']} kills, {found['reported rows lost']} reported rows lost"
    yield Line("row cache, cold run", "no cache", None, None, f"{found['overhead of a cold run']:+.1%} time; {note}")


@dataclass(frozen=True)
class Program:
    """A benchmark: its options in a quick run, and how its figures become lines."""

    quick: tuple[str, ...]
    lines: Callable[[Figures], Iterator[Line]]


PROGRAMS = {
    "embed": Program(("--limit", "24"), embedding),
    "scoring": Program(("--rows", "20000", "--fit-rows", "5000", "--rounds", "1"), scoring),
    "gradient": Program(("--limit", "16"), gradients),
    "plan": Program(("--limit", "100", "--rounds", "1"), planning),
    "resume": Program(("--kills", "4", "--rows", "1000", "--rounds", "2"), resuming),
    "locate": Program(("--limit", "30", "--blocks", "0,3,5", "--rounds", "1"), locating),
}


def table(lines: list[Line]) -> str:
    """The lines as Markdown."""
    rows = ["| what | against | times as fast | of the limit | |", "|---|---|---:|---:|---|"]
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}" if line.ratio < 10 else f"{line.ratio:.0f}"
        share = "" if line.share is None else f"{line.share:.0%}"
        rows.append(f"| {line.what} | {line.baseline} | {ratio} | {share} | {line.note} |")
    return "\n".join(rows) + "\n"


def plot(lines: list[Line], memory: Figures | None, path: Path) -> None:
    """Ratios, shares of the limit, and memory against the number of rows, as PNG and SVG."""
    timed = [line for line in lines if line.ratio is not None]
    limited = [line for line in lines if line.share is not None]
    with figure(path, 9, max(4.5, 1 + 0.55 * len(timed))) as canvas:
        panels = canvas.subplot_mosaic([["ratios", "shares"], ["ratios", "memory"]])
        _ratios(panels["ratios"], timed)
        axes = panels["shares"]
        _bars(axes, [line.what for line in limited], [line.share for line in limited], 0, "{:.0%}")
        axes.set_xlim(0, 1.2)
        axes.set_xticks([0, 0.5, 1])
        axes.set_xlabel("share of the machine's limit", fontsize=9)
        axes = panels["memory"]
        for (name, every), (style, colour) in zip((memory or {"memory": {}})["memory"].items(), _LINES, strict=False):
            axes.plot(memory["sizes"], [one / 2**20 for one in every], style, color=colour, label=name)
        if memory:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9)
        axes.set_xlabel("rows (log scale)", fontsize=9)
        axes.set_ylabel("memory of the\nprocess (MiB)", fontsize=9)


_LINES = (("o-", BLUE), ("s--", RED), ("^:", GREY))


def _ratios(axes: Any, lines: list[Line]) -> None:
    axes.set_xscale("log")
    names = [f"{line.what}\nagainst {line.baseline}" for line in lines]
    _bars(axes, names, [line.ratio for line in lines], 1, "{:.2g}")
    axes.axvline(1, color="black", linewidth=0.8)
    most = max([1, *(line.ratio for line in lines)])
    ticks = [digit * 10.0**power for power in range(-2, 6) for digit in (1, 2, 5)]
    least = min([1, *(line.ratio for line in lines)])
    axes.set_xlim(least / 1.6, 1.8 * most)
    axes.set_xticks([tick for tick in ticks if least / 1.6 <= tick <= 1.8 * most])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("times as fast (log scale; 1: alike)", fontsize=9)


def _bars(axes: Any, names: list[str], values: list[float], start: float, shape: str) -> None:
    """A bar for each value, from a start, with its number."""
    places = range(len(names))
    axes.barh(places, [value - start for value in values], left=start, color=BLUE)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for place, value in zip(places, values, strict=True):
        end = (max(value, start), place)
        axes.annotate(shape.format(value), end, (3, 0), textcoords="offset points", va="center", fontsize=9)


def main() -> None:
    """Run, gather, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"), help="folder to write (out/benchmarks)")
    parser.add_argument("--only", help=f"some of {', '.join(PROGRAMS)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(PROGRAMS)
    if unknown := [name for name in names if name not in PROGRAMS]:
        parser.error(f"there is no benchmark {unknown[0]}; use some of {', '.join(PROGRAMS)}")
    given.output.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    found: dict[str, Figures] = {}
    for name in names:
        path = given.output / f"{name}{'.quick' if given.quick else ''}.json"
        if not path.exists():
            print(f"== benchmarks.{name}", file=sys.stderr, flush=True)
            half = path.with_suffix(".part")
            options = PROGRAMS[name].quick if given.quick else ()
            command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(half)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            half.replace(path)
        found[name] = json.loads(path.read_text(encoding="utf-8"))
        lines += PROGRAMS[name].lines(found[name])
    text = table(lines)
    (given.output / "table.md").write_text(text, encoding="utf-8")
    plot(lines, found.get("scoring"), given.output / "plot")
    print(text, end="")


if __name__ == "__main__":
    main()
