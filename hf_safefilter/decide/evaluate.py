"""How well scores separate labelled rows, with intervals, beside the controls that any method must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import score_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.decide.thresholds import labels_of, numbers_of
from hf_safefilter.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Separation:
    """One score against the labels; shares are in 0..1. Rows that could not be scored are counted, not measured.

    Attributes:
        score: column.
        scored: rows with a label and a finite score.
        unscored: rows with a label and none.
        auroc: area under the ROC curve; 0.5 = no better than chance, below = upside down.
        low: lower end of its 95 % bootstrap interval (stratified, percentile).
        high: upper end.
        auprc: average precision.
        tpr_at_1: share of unsafe rows found while at most 1 % of the safe ones are lost.
        tpr_at_5: the same at 5 %.
        length_rho: Spearman correlation with the length of the response.
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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found: the methods first, then the controls.

    Attributes:
        label: column of labels.
        rows: rows with a label.
        unsafe: how many of them are unsafe.
        separations: one entry a score.
    """

    label: str
    rows: int
    unsafe: int
    separations: tuple[Separation, ...]

    def table(self) -> list[dict[str, Any]]:
        """One row a score, for printing: interval ends, TPR at 1 % and 5 % FPR, Spearman with length."""
        return [
            {
                "score": one.score.removesuffix("_score"),
                "AUROC": round(one.auroc, 3),
                "low": round(one.low, 3),
                "high": round(one.high, 3),
                "AUPRC": round(one.auprc, 3),
                "TPR@1%": round(one.tpr_at_1, 3),
                "TPR@5%": round(one.tpr_at_5, 3),
                "rho len": None if one.length_rho is None else round(one.length_rho, 3),
                "unscored": one.unscored,
            }
            for one in self.separations
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the card has them."""
        body = asdict(self)
        return body | {"separations": [dict(one) for one in body["separations"]]}


def evaluate(
    ds: Dataset | DatasetDict | Mapping[str, Any],
    label: str,
    *,
    unsafe: Any = "unsafe",
    scores: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Measure scores against labels; length and random are measured beside them in any case.

    Args:
        ds: scored rows, or a dict of columns.
        label: column of labels; rows without one are left out.
        unsafe: the value that means unsafe; every other means safe.
        scores: score columns; default: all columns of methods known here.
        columns: where prompt and response stand, for rows of no known shape.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: no labels of both kinds, or no scores.
        MissingError: a column that is not there.
    """
    truth = labels_of(ds, label, unsafe)
    labelled = np.isfinite(truth)
    named = list(scores) if scores is not None else _method_columns(ds)
    if not named:
        raise DataError("there are no scores to measure", fix="score the rows first: hf-safefilter score --help")
    values = {name: numbers_of(ds, name) for name in named}
    controls = control_scores(ds, columns)
    values = {name: one for name, one in values.items() if name not in controls} | controls
    length = controls[score_column("length")]
    found = [
        _separation(name, one[labelled], truth[labelled] == 1, length[labelled], resamples, seed)
        for name, one in values.items()
    ]
    return Evaluation(label, int(labelled.sum()), int(np.nansum(truth)), tuple(found))


def _method_columns(ds: Any) -> list[str]:
    from hf_safefilter.scores import METHODS

    first = next(iter(ds.values())) if isinstance(ds, Mapping) and ds else ds
    names = first.column_names if hasattr(first, "column_names") else list(ds)
    known = {score_column(method) for method in METHODS}
    return [name for name in names if name in known]


def control_scores(ds: Any, columns: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The control scores, float64 (n,) each, computed from the text where they are not columns already."""
    from hf_safefilter.scores import CONTROLS, make

    found = {}
    there = _method_columns(ds)
    for name in CONTROLS:
        column = score_column(name)
        if column in there:
            found[column] = numbers_of(ds, column)
            continue
        step = make(name, columns=columns)
        found[column] = np.concatenate([step.compute(view, None)[column] for view in _text_views(ds)]).astype(float)
    return found


def _text_views(ds: Any) -> list[Batch]:
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
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    used = np.isfinite(values)
    scores, unsafe = values[used], truth[used]
    if unsafe.all() or not unsafe.any():
        raise DataError(
            f"{name} scored rows of one label only", found=f"{int((~used).sum())} of {len(used)} rows have no score",
            fix="look at column 'unscorable'",
        )  # fmt: skip
    low, high = _interval(scores, unsafe, resamples, seed)
    fpr, tpr, _ = roc_curve(unsafe, scores, drop_intermediate=False)
    return Separation(
        score=name,
        scored=len(scores),
        unscored=int((~used).sum()),
        auroc=float(roc_auc_score(unsafe, scores)),
        low=low,
        high=high,
        auprc=float(average_precision_score(unsafe, scores)),
        tpr_at_1=float(tpr[fpr <= 0.01].max()),
        tpr_at_5=float(tpr[fpr <= 0.05].max()),
        length_rho=spearman(scores, length[used]),
    )


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Rank correlation of the rows where both are finite; None where one of them does not vary."""
    from scipy.stats import spearmanr

    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 3 or np.ptp(one[both]) == 0 or np.ptp(other[both]) == 0:
        return None
    return float(spearmanr(one[both], other[both]).statistic)


def _interval(scores: np.ndarray, unsafe: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the AUROC over resamples within each label.

    A resample is a count for each row; its AUROC is a sum over the sorted distinct scores, so that many are done at
    once without sorting again.
    """
    draw = np.random.default_rng(seed)
    _, group = np.unique(scores, return_inverse=True)
    n_groups = int(group.max()) + 1
    sides = [group[unsafe], group[~unsafe]]
    found = []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        times = min(_RESAMPLES_AT_ONCE, resamples - start)
        shares = []
        for side in sides:
            picked = side[draw.integers(0, len(side), (times, len(side)))]
            flat = (np.arange(times)[:, None] * n_groups + picked).ravel()
            shares.append(np.bincount(flat, minlength=times * n_groups).reshape(times, n_groups) / len(side))
        high, low = shares
        below = np.cumsum(low, axis=1) - low
        found.append((high * (below + low / 2)).sum(axis=1))
    ends = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(ends[0]), float(ends[1])
