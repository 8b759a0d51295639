"""What labels are worth: AUROC against the number of labels given, cross-validated on these labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter.decide.verdict.rank_statistics import Interval, Ranking, interval, resampled
from hf_safefilter.figures import BLUE, GREY, figure

FOLDS = 5
LEAST = 5
"""Labels of each kind below which an AUROC says nothing."""

OF_DOUBTFUL_ROWS = "on the rows asked for, which are the doubtful ones: over all rows it is likely higher"
OF_LABELLED_ROWS = "on the labelled rows"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """How well the probe separates labelled rows that it was not given.

    Attributes:
        labels: Number of rows labelled unsafe or safe.
        unsafe: Number of those that are unsafe.
        auroc: AUROC by cross-validation on these rows, with its bootstrap interval; None while there are too few of a
            kind.
        references: AUROC of the references alone on the same rows.
    """

    labels: int
    unsafe: int
    auroc: Interval | None
    references: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def sentence(self) -> str:
        """The point in words."""
        count = f"{self.labels} labels, {self.unsafe} unsafe"
        if self.auroc is None:
            return f"{count}: no AUROC yet, at least {LEAST} of each kind are needed"
        return (
            f"{count}: AUROC {self.auroc.value:.3f} ({self.auroc.low:.3f} to {self.auroc.high:.3f}), "
            f"by the references alone {self.references:.3f}"
        )


def folds_by_request(requests: Sequence[str], truth: np.ndarray, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """The fold of each row, int (n,): rows of one request share it, and unsafe rows are spread over all.

    Args:
        requests: What was asked in each row.
        truth: 1 = unsafe, 0 = safe, (n,).
        folds: Number of folds.
        seed: Seed of the order of the requests.
    """
    _, group = np.unique(np.asarray(requests, dtype=object).astype(str), return_inverse=True)
    size = np.bincount(group)
    share = np.bincount(group, truth) / size
    order = np.lexsort((np.random.default_rng(seed).permutation(len(size)), share))
    fold = np.empty(len(size), dtype=np.int64)
    fold[order] = np.arange(len(size)) % folds
    return fold[group]


def curve_point(
    truth: np.ndarray,
    requests: Sequence[str],
    scores_without: Callable[[np.ndarray], np.ndarray],
    references: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> CurvePoint:
    """Cross-validate a probe on labelled rows.

    Args:
        truth: 1 = unsafe, 0 = safe, (n,).
        requests: What was asked in each row: rows of one request are held out together.
        scores_without: Scores of all n rows by a probe that was not given those of a mask, bool (n,).
        references: Scores of the rows by the references alone, (n,).
        seed: Seed of the folds and of the bootstrap.
        resamples: Number of resamples of the bootstrap.
    """
    unsafe = truth > 0.5
    if min(unsafe.sum(), (~unsafe).sum()) < LEAST:
        return CurvePoint(len(truth), int(unsafe.sum()), None, None)
    fold = folds_by_request(requests, truth, seed=seed)
    scores = np.empty(len(truth))
    for number in np.unique(fold):
        held_out = fold == number
        scores[held_out] = scores_without(held_out)[held_out]
    ranking = Ranking(scores)
    auroc, before = ranking.auroc(unsafe), Ranking(references).auroc(unsafe)
    assert auroc is not None  # there are rows of both kinds
    return CurvePoint(
        len(truth), int(unsafe.sum()), interval(auroc, resampled(unsafe, [ranking], resamples, seed)[0]), before
    )


def draw_curve(points: Sequence[CurvePoint], path: Path, rows: str = OF_DOUBTFUL_ROWS) -> None:
    """Write ``path.png`` and ``path.svg``; `rows` says on which rows it was measured."""
    from matplotlib.ticker import MaxNLocator

    with figure(path, 7, 4.4) as canvas:
        axes = canvas.subplots()
        judged = [(point, point.auroc) for point in points if point.auroc is not None]
        labels = [point.labels for point, _ in judged]
        values = np.array([auroc.value for _, auroc in judged])
        ends = np.abs([[auroc.low for _, auroc in judged], [auroc.high for _, auroc in judged]] - values)
        with_labels = "with the labels, cross-validated"
        axes.errorbar(labels, values, ends, fmt="o-", color=BLUE, capsize=3, linewidth=1.5, label=with_labels)
        before = [np.nan if point.references is None else point.references for point, _ in judged]
        axes.plot(labels, before, "s--", color=GREY, markersize=4, label="references alone, on the same rows")
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="chance")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, 1.05 * max([10, *(point.labels for point in points)]))
        axes.set_ylim(min([0.45, *(auroc.low - 0.02 for _, auroc in judged)]), 1.02)
        axes.set_xlabel("rows labelled")
        axes.set_ylabel("AUROC, 95 % interval")
        last = f"{points[-1].sentence()}\n" if points else ""
        axes.set_title(f"{last}AUROC {rows}", loc="left", fontsize=9)
        canvas.legend(frameon=False, loc="outside lower left", ncols=3, fontsize=9)
