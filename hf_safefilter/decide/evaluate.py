"""How well scores separate labelled rows, with intervals, and next to the controls that any method must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import score_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.decide.thresholds import labels_of, numbers_of
from hf_safefilter.decide.verdict import Verdict, verdict_from_labels
from hf_safefilter.errors import DataError

if TYPE_CHECKING:
    from hf_safefilter.decide.thresholds import ScoredRows


@dataclass(frozen=True, slots=True)
class Separation:
    """How well one score separates the labels; shares are in 0..1. Rows without a score are only counted.

    Attributes:
        score: Name of the score column.
        scored: Number of rows with a label and a finite score.
        unscored: Number of rows with a label but no finite score.
        auroc: Area under the ROC curve; 0.5 = no better than chance, below = upside down.
        low: Lower end of its 95 % bootstrap interval (stratified, percentile).
        high: Upper end of that interval.
        auprc: Average precision.
        tpr_at_1: Share of unsafe rows found while at most 1 % of the safe rows are lost.
        tpr_at_5: The same share at 5 %.
        length_rho: Spearman correlation with the length of the response; None if one of both does not vary.
        verdict: What these figures say of the score.
    """

    score: str
    scored: int
    unscored: int
    auroc: float
    low: float
    high: float
    auprc: float
    tpr_at_1: float
    tpr_at_5: float
    length_rho: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of `evaluate`: the methods first, then the controls.

    Attributes:
        label: Name of the column of labels.
        rows: Number of rows with a label.
        unsafe: Number of rows labelled unsafe.
        separations: One entry for each score.
    """

    label: str
    rows: int
    unsafe: int
    separations: tuple[Separation, ...]

    def table(self) -> list[dict[str, Any]]:
        """One line for each score, for printing: interval ends, TPR at 1 % and 5 % FPR, Spearman with length."""
        return [
            {
                "score": separation.score.removesuffix("_score"),
                "AUROC": round(separation.auroc, 3),
                "low": round(separation.low, 3),
                "high": round(separation.high, 3),
                "AUPRC": round(separation.auprc, 3),
                "TPR@1%": round(separation.tpr_at_1, 3),
                "TPR@5%": round(separation.tpr_at_5, 3),
                "rho len": None if separation.length_rho is None else round(separation.length_rho, 3),
                "unscored": separation.unscored,
                "verdict": separation.verdict.finding,
            }
            for separation in self.separations
        ]

    def sentences(self) -> list[str]:
        """What these figures say of each method, in a sentence; the controls have none."""
        return [item.verdict.sentence for item in self.separations if item.verdict.finding != "control"]

    def verdict_on(self, score: str) -> Verdict | None:
        """The verdict on a score column; None if it was not measured."""
        return next((item.verdict for item in self.separations if item.score == score), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a card states them."""
        lines = [asdict(item) | {"verdict": item.verdict.to_json()} for item in self.separations]
        return asdict(self) | {"separations": lines}


def evaluate(
    ds: ScoredRows,
    label: str,
    *,
    unsafe: str | int | bool = "unsafe",
    scores: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure scores against labels; the controls, length and random, are always measured too.

    Args:
        ds: Scored rows, or a dict of columns.
        label: Name of the column of labels; rows without a label are left out.
        unsafe: The value that means unsafe; every other value means safe.
        scores: Names of score columns; None takes the columns of all known methods.
        columns: Columns of prompt and response, for rows of no known shape.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        DataError: There are not labels of both kinds, or there are no scores.
        MissingError: A column is missing.
    """
    truth = labels_of(ds, label, unsafe)
    labelled = np.isfinite(truth)
    names = list(scores) if scores is not None else _method_columns(ds)
    if not names:
        raise DataError("there are no scores to measure", fix="score the rows first: hf-safefilter score --help")
    controls = control_scores(ds, columns)
    methods = {name: numbers_of(ds, name) for name in names}
    values = {name: numbers for name, numbers in methods.items() if name not in controls} | controls
    length = controls[score_column("length")]
    separations = [
        _separation(name, numbers[labelled], truth[labelled] == 1, length[labelled], resamples, seed)
        for name, numbers in values.items()
    ]
    return Evaluation(label, int(labelled.sum()), int(np.nansum(truth)), tuple(separations))


def verdict_by_labels(
    ds: ScoredRows,
    score: str,
    label: str,
    unsafe: str | int | bool = "unsafe",
    columns: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on one score column by labelled rows; arguments as of `evaluate`.

    Raises:
        DataError: There are not labels of both kinds.
        MissingError: A column is missing.
    """
    truth = labels_of(ds, label, unsafe)
    labelled = np.isfinite(truth)
    length = control_scores(ds, columns)[score_column("length")]
    return verdict_from_labels(score, numbers_of(ds, score)[labelled], truth[labelled] == 1, length[labelled])


def _method_columns(ds: ScoredRows) -> list[str]:
    from hf_safefilter.scores import METHODS

    first = next(iter(ds.values())) if isinstance(ds, Mapping) and ds else ds
    names = first.column_names if hasattr(first, "column_names") else list(ds)
    known = {score_column(method) for method in METHODS}
    return [name for name in names if name in known]


def control_scores(ds: ScoredRows, columns: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The control scores by column, float64 (n,) each; those that are not columns yet are computed from the text."""
    from hf_safefilter.scores import CONTROLS, make

    scores = {}
    existing = _method_columns(ds)
    for name in CONTROLS:
        column = score_column(name)
        if column in existing:
            scores[column] = numbers_of(ds, column)
            continue
        step = make(name, columns=columns)
        scores[column] = np.concatenate([step.compute(view, None)[column] for view in _text_views(ds)]).astype(float)
    return scores


def _text_views(ds: ScoredRows) -> list[Batch]:
    from hf_safefilter.columns import EMBEDDING_PREFIX

    if isinstance(ds, Mapping) and not hasattr(next(iter(ds.values())), "column_names"):
        return [Batch(ds)]
    views = []
    for part in ds.values() if isinstance(ds, Mapping) else [ds]:
        text = part.select_columns([name for name in part.column_names if not name.startswith(EMBEDDING_PREFIX)])
        views += [Batch(table) for table in text.with_format("arrow").iter(4096)]
    return views


def _separation(
    name: str, values: np.ndarray, truth: np.ndarray, length: np.ndarray, resamples: int, seed: int
) -> Separation:
    from sklearn.metrics import average_precision_score, roc_curve

    used = np.isfinite(values)
    scores, unsafe = values[used], truth[used]
    if unsafe.all() or not unsafe.any():
        raise DataError(
            f"all rows that have a {name} have the same label",
            found=f"{int((~used).sum())} of {len(used)} rows have no score",
            fix="see the reasons in column 'unscorable'",
        )
    verdict = verdict_from_labels(name, scores, unsafe, length[used], resamples=resamples, seed=seed)
    assert verdict.auroc is not None  # there are labels of both kinds
    fpr, tpr, _ = roc_curve(unsafe, scores, drop_intermediate=False)
    return Separation(
        score=name,
        scored=len(scores),
        unscored=int((~used).sum()),
        auroc=verdict.auroc.value,
        low=verdict.auroc.low,
        high=verdict.auroc.high,
        auprc=float(average_precision_score(unsafe, scores)),
        tpr_at_1=float(tpr[fpr <= 0.01].max()),
        tpr_at_5=float(tpr[fpr <= 0.05].max()),
        length_rho=verdict.length_rho,
        verdict=verdict,
    )
