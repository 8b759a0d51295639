"""What a comparison of methods found: figures, verdicts, a table, plain values and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.decide.evaluate import Separation
from hf_safefilter.figures import BLUE, GREY, figure
from hf_safefilter.scores import CONTROLS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class Lead:
    """AUROC of a score minus that of the length control, on the same rows, with its 95 % interval (DeLong)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One score.

    Attributes:
        method: its name.
        column: where it stands.
        layer: what it reads; None where it reads no hidden states.
        scored: rows with a finite score.
        fit_seconds: making the step, with whatever it is fitted on; not per row.
        embed_seconds: reading 1,000 rows at the layers that all methods together need; None where it reads none.
        score_seconds: scoring 1,000 rows that have been read.
        length_rho: Spearman correlation with the length of the response; None where one of them does not vary.
        separation: against the labels, where there are some.
        lead: over length; None without labels, and for length itself.
    """

    method: str
    column: str
    layer: Layer | None
    scored: int
    fit_seconds: float
    embed_seconds: float | None
    score_seconds: float
    length_rho: float | None
    separation: Separation | None = None
    lead: Lead | None = None

    @property
    def verdict(self) -> str:
        """Whether it beats the controls, in words; "" without labels, and for the controls themselves."""
        if self.separation is None or self.lead is None or self.method in CONTROLS:
            return ""
        if self.separation.high < 0.5:
            return "upside down"
        if self.separation.low <= 0.5:
            return "no better than random"
        return "beats length" if self.lead.low > 0 else "does not beat length"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare_methods` found: the methods in the order asked for, then the controls.

    Attributes:
        rows: how many there are.
        label: column of labels, if one was named.
        labelled: rows with a label.
        unsafe: how many of them are unsafe.
        entries: one a score.
        agreement: column -> column -> Spearman correlation over the rows that both could score.
        skipped: method -> why it could not be used.
        scored: the rows with all score columns.
        steps: what filled them, in order.
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
        """What each score finds, for printing: one row a score, the controls last."""
        return [self._line(one) for one in self.entries]

    def _line(self, one: Entry) -> dict[str, Any]:
        line: dict[str, Any] = {"score": one.method, "layer": "" if one.layer is None else str(one.layer)}
        if one.separation is not None:
            line |= {
                "AUROC": _shown(one.separation.auroc),
                "low": _shown(one.separation.low),
                "high": _shown(one.separation.high),
                "AUPRC": _shown(one.separation.auprc),
                "TPR@1%": _shown(one.separation.tpr_at_1),
            }
        line["rho len"] = _shown(one.length_rho)
        return line | ({"verdict": one.verdict} if one.separation is not None else {"scored": one.scored})

    def cost_table(self) -> list[dict[str, Any]]:
        """Seconds: fitting once, and reading and scoring 1,000 rows."""
        return [
            {
                "score": one.method,
                "scored": one.scored,
                "fit": _shown(one.fit_seconds),
                "read 1,000 rows": _shown(one.embed_seconds, 4),
                "score 1,000 rows": _shown(one.score_seconds, 4),
            }
            for one in self.entries
        ]

    def skipped_table(self) -> list[dict[str, Any]]:
        """Methods that were left out, and why."""
        return [{"left out": name, "because": why} for name, why in self.skipped.items()]

    def agreement_table(self) -> list[dict[str, Any]]:
        """One row a score: its rank correlation with every score."""
        short = {column: column.removesuffix("_score") for column in self.agreement}
        return [
            {"Spearman": short[one]} | {short[other]: _shown(rho, 2) for other, rho in line.items()}
            for one, line in self.agreement.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values; not the rows."""
        return {
            "rows": self.rows,
            "label": self.label,
            "labelled": self.labelled,
            "unsafe": self.unsafe,
            "entries": [asdict(one) | {"verdict": one.verdict} for one in self.entries],
            "agreement": {one: dict(line) for one, line in self.agreement.items()},
            "skipped": dict(self.skipped),
        }


def _shown(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits) + 0.0  # not minus nought


def draw(comparison: Comparison, path: Path) -> None:
    """Write ``path.png`` and ``path.svg``: the AUROC of each score where there are labels, and how scores agree."""
    short = [one.method for one in comparison.entries]
    measured = comparison.label is not None
    side = 1.2 + 0.45 * len(short)
    with figure(path, side + 1.6 + (4.5 if measured else 0), side) as drawn:
        axes = drawn.subplots(1, 2, width_ratios=[4.5, side + 1.6]) if measured else [drawn.subplots()]
        if measured:
            _draw_separations(axes[0], comparison)
        grid = np.array([[np.nan if rho is None else rho for rho in line.values()]
                         for line in comparison.agreement.values()])  # fmt: skip
        axes[-1].imshow(grid, vmin=-1, vmax=1, cmap="RdBu")
        for (row, column), rho in np.ndenumerate(grid):
            shown = "" if np.isnan(rho) else f"{rho:.2f}"
            axes[-1].text(column, row, shown, ha="center", va="center", fontsize=8,
                          color="white" if abs(rho) > 0.6 else "black")  # fmt: skip
        axes[-1].set_xticks(range(len(short)), short, rotation=45, ha="right")
        axes[-1].set_yticks(range(len(short)), short)
        axes[-1].set_title("Spearman correlation of the scores", loc="left")


def _draw_separations(axes: Any, comparison: Comparison) -> None:
    for place, one in enumerate(comparison.entries):
        found = one.separation
        colour = GREY if one.method in CONTROLS else BLUE
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
        axes.plot([found.auroc], [place], "o", color=colour)
    axes.axvline(0.5, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(comparison.entries)), [one.method for one in comparison.entries])
    axes.invert_yaxis()
    axes.set_xlabel("AUROC, 95 % interval (controls grey; dashed: chance)")
    axes.set_title(f"{comparison.unsafe} of {comparison.labelled} labelled rows are unsafe", loc="left")
