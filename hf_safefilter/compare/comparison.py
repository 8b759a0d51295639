"""The result of a comparison of methods: numbers, verdicts, tables, plain values and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.decide.evaluate import Separation
from hf_safefilter.decide.verdict import Verdict
from hf_safefilter.figures import BLUE, GREY, figure
from hf_safefilter.scores import CONTROLS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from matplotlib.axes import Axes

    from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of one score.

    Attributes:
        method: Name of the method.
        column: Name of the score column.
        layer: The layer it reads; None if it reads no hidden states.
        scored: Number of rows with a finite score.
        fit_seconds: Seconds to make the step, including its fit; once, not for each row.
        embed_seconds: Seconds to read 1,000 rows at the layers that all methods together need; None if it reads none.
        score_seconds: Seconds to score 1,000 rows that have been read.
        length_rho: Spearman correlation with the length of the response; None if one of them does not vary.
        separation: How well it separates the labels; None without labels.
        verdict: What is known of the score: by the labels, or else by the references and the rows' lengths.
    """

    method: str
    column: str
    layer: Layer | None
    scored: int
    fit_seconds: float
    embed_seconds: float | None
    score_seconds: float
    length_rho: float | None
    verdict: Verdict
    separation: Separation | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare_methods`: the methods in the order in which they were named, then the controls.

    Attributes:
        rows: Number of rows.
        label: Name of the column of labels, if one was named.
        labelled: Number of rows with a label.
        unsafe: Number of rows labelled unsafe.
        entries: One entry for each score.
        agreement: Column -> column -> Spearman correlation over the rows that have both scores.
        skipped: Method -> reason why it could not be used.
        scored: The rows with all score columns.
        steps: The steps that filled these columns, in order.
    """

    rows: int
    label: str | None
    labelled: int
    unsafe: int
    entries: tuple[Entry, ...]
    agreement: Mapping[str, Mapping[str, float | None]]
    skipped: Mapping[str, str]
    scored: Dataset | DatasetDict
    steps: tuple[Step, ...]

    def table(self) -> list[dict[str, Any]]:
        """How well each score separates the labels, for printing: one line for each score, the controls last."""
        return [self._line(entry) for entry in self.entries]

    def _line(self, entry: Entry) -> dict[str, Any]:
        line: dict[str, Any] = {"score": entry.method, "layer": "" if entry.layer is None else str(entry.layer)}
        if entry.separation is not None:
            line |= {
                "AUROC": _rounded(entry.separation.auroc),
                "low": _rounded(entry.separation.low),
                "high": _rounded(entry.separation.high),
                "AUPRC": _rounded(entry.separation.auprc),
                "TPR@1%": _rounded(entry.separation.tpr_at_1),
            }
        line["rho len"] = _rounded(entry.length_rho)
        return line | {"verdict": entry.verdict.finding}

    def sentences(self) -> list[str]:
        """The verdict on each method in a sentence; the controls have none."""
        return [entry.verdict.sentence for entry in self.entries if entry.method not in CONTROLS]

    @property
    def best(self) -> Entry:
        """The method to go on with: of the trusted ones, else of those that are not bad, the one of the largest AUROC.

        Without labels, the one that separates the held-out references best.
        """

        def rank(entry: Entry) -> tuple[bool, bool, float]:
            found = entry.verdict.auroc or entry.verdict.held_out
            return entry.verdict.trusted, not entry.verdict.bad, found.value if found is not None else 0.0

        return max((entry for entry in self.entries if entry.method not in CONTROLS), key=rank)

    def cost_table(self) -> list[dict[str, Any]]:
        """Seconds to fit once, and to read and to score 1,000 rows, for printing."""
        return [
            {
                "score": entry.method,
                "scored": entry.scored,
                "fit": _rounded(entry.fit_seconds),
                "read 1,000 rows": _rounded(entry.embed_seconds, 4),
                "score 1,000 rows": _rounded(entry.score_seconds, 4),
            }
            for entry in self.entries
        ]

    def skipped_table(self) -> list[dict[str, Any]]:
        """Methods that were left out, and the reasons."""
        return [{"left out": name, "because": reason} for name, reason in self.skipped.items()]

    def agreement_table(self) -> list[dict[str, Any]]:
        """The rank correlations of each score with every score, for printing: one line for each score."""
        short = {column: column.removesuffix("_score") for column in self.agreement}
        return [
            {"Spearman": short[column]} | {short[other]: _rounded(rho, 2) for other, rho in line.items()}
            for column, line in self.agreement.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the rows."""
        return {
            "rows": self.rows,
            "label": self.label,
            "labelled": self.labelled,
            "unsafe": self.unsafe,
            "entries": [self._entry(entry) for entry in self.entries],
            "agreement": {column: dict(line) for column, line in self.agreement.items()},
            "skipped": dict(self.skipped),
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        """Plain values of an entry; the verdict is stated once."""
        body = asdict(entry) | {"verdict": entry.verdict.to_json()}
        if entry.separation is not None:
            body["separation"].pop("verdict")
        return body


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits) + 0.0  # the sum turns -0.0 into 0.0


def draw(comparison: Comparison, path: Path) -> None:
    """Write ``path.png`` and ``path.svg``: AUROCs where there are labels, verdicts, and how scores agree."""
    names = [entry.method for entry in comparison.entries]
    labelled = any(entry.separation is not None for entry in comparison.entries)
    side = 1.2 + 0.45 * len(names)
    with figure(path, side + (6.2 if labelled else 3.6), side + 0.3) as canvas:
        axes = canvas.subplots(1, 2, width_ratios=[6.2, side]) if labelled else [canvas.subplots()]
        if labelled:
            _draw_separations(axes[0], comparison)
            canvas.legend(frameon=False, loc="outside lower left", ncols=3, fontsize=9)
        grid = np.array([[np.nan if rho is None else rho for rho in line.values()]
                         for line in comparison.agreement.values()])  # fmt: skip
        axes[-1].imshow(grid, vmin=-1, vmax=1, cmap="RdBu")
        for (row, column), rho in np.ndenumerate(grid):
            text = "" if np.isnan(rho) else f"{rho:.2f}"
            axes[-1].text(column, row, text, ha="center", va="center", fontsize=9,
                          color="white" if abs(rho) > 0.6 else "black")  # fmt: skip
        axes[-1].set_xticks(range(len(names)), names, rotation=45, ha="right")
        if not labelled:
            names = [f"{entry.method}: {entry.verdict.finding}" for entry in comparison.entries]
        axes[-1].set_yticks(range(len(names)), names)
        axes[-1].set_title("Spearman correlation of scores", loc="left", fontsize=10)


def _draw_separations(axes: Axes, comparison: Comparison) -> None:
    named: set[str] = set()
    for height, entry in enumerate(comparison.entries):
        kind = "control" if entry.method in CONTROLS else "score"
        axes.text(1.02, height, entry.verdict.finding, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        if (separation := entry.separation) is None:
            continue
        colour, mark = (GREY, "s") if kind == "control" else (BLUE, "o")
        axes.errorbar(
            [separation.auroc], [height], color=colour, fmt=mark, linewidth=2, label=None if kind in named else kind,
            xerr=[[max(0.0, separation.auroc - separation.low)], [max(0.0, separation.high - separation.auroc)]],
        )  # fmt: skip
        named.add(kind)
    axes.axvline(0.5, color="black", linewidth=1, linestyle="--", label="chance")
    axes.set_yticks(range(len(comparison.entries)), [entry.method for entry in comparison.entries])
    axes.set_ylim(len(comparison.entries) - 0.5, -0.5)
    axes.set_xlabel("AUROC, 95 % interval")
    axes.set_title(
        f"{comparison.unsafe:,} of {comparison.labelled:,} labelled rows are unsafe; verdicts at the right",
        loc="left", fontsize=10,
    )  # fmt: skip
