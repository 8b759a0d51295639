"""Rules that find a threshold: a count, a share, a value, labelled rows, or a guarantee."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.labels import truth_of
from hf_safefilter.decide.conformal import conformal_threshold
from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class Threshold(float):
    """A number that says how it was found.

    Attributes:
        rule: one sentence.
    """

    rule: str

    def __new__(cls, value: float, rule: str) -> Threshold:
        """`value`, found by `rule`."""
        made = super().__new__(cls, value)
        made.rule = rule
        return made

    def __reduce__(self) -> tuple:
        return Threshold, (float(self), self.rule)


def threshold_for(
    ds: Dataset | DatasetDict | Mapping[str, Any],
    column: str,
    *,
    drop_fraction: float | None = None,
    drop_count: int | None = None,
    threshold: float | None = None,
    label: str | None = None,
    unsafe: Any = "unsafe",
    rule: str | None = None,
    max_fpr: float | None = None,
    known_good: Any = None,
    max_loss: float | None = None,
    confidence: float | None = None,
) -> Threshold:
    """The threshold at and above which rows are dropped. Exactly one way of finding it is given.

    Args:
        ds: scored rows: a data set, a `DatasetDict` (all splits together), or a dict of columns.
        column: the score column.
        drop_fraction: share of the scored rows to drop, in (0, 1).
        drop_count: number of rows to drop. In both, rows that tie with the last one go too; rows that could not be
            scored are dropped in any case and not counted.
        threshold: an absolute value.
        label: column of labels, used with `rule`; null labels are left out.
        unsafe: the label value that means unsafe; every other value means safe.
        rule: ``best_f1`` (default), or ``tpr_at_fpr``: the most unsafe rows found while at most `max_fpr` of the safe
            ones are lost.
        max_fpr: for ``tpr_at_fpr``.
        known_good: scored rows known to be good, or their scores: a threshold with a guarantee.
        max_loss: at most this share of such rows is lost ...
        confidence: ... at this confidence.

    Raises:
        OptionError: no way given, several, or one that makes no sense.
        DataError: scores or labels that the rule cannot work on.
        MissingError: a column that is not there.
    """
    ways = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold, "label": label,
            "known_good": known_good}  # fmt: skip
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise OptionError(f"give exactly one of {', '.join(ways)}", found=", ".join(given) or "none", fix="choose one")
    way = given[0]
    _refuse_strays(way, rule=rule, max_fpr=max_fpr, max_loss=max_loss, confidence=confidence)
    if way == "threshold":
        return _absolute(threshold)
    if way == "known_good":
        if max_loss is None or confidence is None:
            raise OptionError("known_good needs max_loss and confidence", fix="e.g. max_loss=0.05, confidence=0.95")
        good = known_good if isinstance(known_good, (np.ndarray, list, tuple)) else numbers_of(known_good, column)
        value = conformal_threshold(np.asarray(good), max_loss, confidence)
        return Threshold(
            value,
            f"at most {max_loss:g} of rows like the {len(good)} known-good ones are lost, at confidence {confidence:g}",
        )
    scores = numbers_of(ds, column)
    if way == "label":
        return _labelled(scores, labels_of(ds, label, unsafe), rule, max_fpr)
    return _ranked(scores[np.isfinite(scores)], drop_fraction, drop_count)


_GOES_WITH = {"rule": "label", "max_fpr": "label", "max_loss": "known_good", "confidence": "known_good"}


def _refuse_strays(way: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None and _GOES_WITH[name] != way:
            raise OptionError(f"{name} goes with {_GOES_WITH[name]}, not with {way}", fix=f"leave {name} out")


def _absolute(value: float) -> Threshold:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise OptionError(f"threshold {value!r} is not a finite number", fix="use a number")
    return Threshold(value, f"score below {value:.6g}, given by hand")


def _ranked(scores: np.ndarray, fraction: float | None, count: int | None) -> Threshold:
    n = len(scores)
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
            raise OptionError(f"drop_fraction={fraction!r} is not between 0 and 1", fix="use e.g. drop_fraction=0.02")
        wanted = max(1, round(fraction * n))
    else:
        wanted = count
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count < max(n, 1):
            raise OptionError(
                f"drop_count={count!r} does not fit {n} scored rows", fix="use 1 or more, and fewer than all"
            )
    if n < 2:
        raise DataError(f"{n} rows could be scored: too few to rank", fix="check the reasons in column 'unscorable'")
    value = float(np.partition(scores, n - wanted)[n - wanted])
    dropped = int((scores >= value).sum())
    if dropped == n:
        raise DataError(
            f"dropping {wanted} rows would drop all {n}: they tie", fix="use another score or an absolute threshold"
        )
    asked = f"{100 * fraction:.4g} %" if fraction is not None else f"{wanted}"
    ties = f" ({dropped - wanted} more tie with the last)" if dropped > wanted else ""
    return Threshold(value, f"the highest {asked} of {n} scored rows dropped{ties}")


def _labelled(scores: np.ndarray, labels: np.ndarray, rule: str | None, max_fpr: float | None) -> Threshold:
    from sklearn.metrics import precision_recall_curve, roc_curve

    used = np.isfinite(scores) & np.isfinite(labels)
    scores, labels = scores[used], labels[used].astype(bool)
    if labels.all() or not labels.any():
        raise DataError(
            "labels of both kinds are needed on rows that could be scored",
            found=f"{int(labels.sum())} unsafe, {int((~labels).sum())} safe",
            fix="check the label column and the value that means unsafe",
        )
    rule = rule or ("best_f1" if max_fpr is None else "tpr_at_fpr")
    if rule == "best_f1":
        if max_fpr is not None:
            raise OptionError("max_fpr goes with tpr_at_fpr, not with best_f1", fix="rule='tpr_at_fpr'")
        precision, recall, values = precision_recall_curve(labels, scores)
        f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-300)
        best = len(f1) - 1 - int(np.argmax(f1[::-1]))  # of equal ones the highest: it loses fewer rows
        return Threshold(float(values[best]), f"best F1 ({f1[best]:.3f}) on {len(labels)} labelled rows")
    if rule != "tpr_at_fpr":
        raise OptionError(f"rule {rule!r} is not known", fix="use best_f1 or tpr_at_fpr")
    if isinstance(max_fpr, bool) or not isinstance(max_fpr, (int, float)) or not 0 < max_fpr < 1:
        raise OptionError(f"max_fpr={max_fpr!r} is not between 0 and 1", fix="use e.g. max_fpr=0.05")
    fpr, tpr, values = roc_curve(labels, scores, drop_intermediate=False)
    place = int(np.flatnonzero(fpr <= max_fpr)[-1])
    if not np.isfinite(values[place]):
        raise DataError(f"no threshold loses at most {max_fpr:g} of the safe rows", fix="allow a larger max_fpr")
    rate = f"TPR {tpr[place]:.3f} at FPR {fpr[place]:.3f}"
    return Threshold(float(values[place]), f"{rate} (at most {max_fpr:g}) on {len(labels)} labelled rows")


def numbers_of(ds: Dataset | DatasetDict | Mapping[str, Any], column: str) -> np.ndarray:
    """A column of numbers as float64 (n,), all splits one after the other, through Arrow."""
    return np.concatenate([view.numbers(column) for view in views_of(ds, column)] or [np.empty(0)])


def views_of(ds: Any, *columns: str) -> list[Batch]:
    """Batches that hold `columns`, split by split."""
    if not isinstance(ds, Mapping) or (ds and hasattr(next(iter(ds.values())), "column_names")):
        parts = ds.values() if isinstance(ds, Mapping) else [ds]
        for part in parts:
            for column in columns:
                Batch({name: [] for name in part.column_names}).require(column, "score or label the rows first")
        tables = [part.select_columns(list(columns)).with_format("arrow")[:] for part in parts]
        return [Batch(table) for table in tables]
    view = Batch(ds)
    for column in columns:
        view.require(column, "score or label the rows first")
    return [view]


def labels_of(ds: Dataset | DatasetDict | Mapping[str, Any], label: str, unsafe: Any) -> np.ndarray:
    """float64 (n,): 1 = unsafe, 0 = any other label, NaN = none; all splits one after the other.

    Raises:
        DataError: there are not labels of both kinds.
        MissingError: there is no such column.
    """
    return truth_of([cell for view in views_of(ds, label) for cell in view.cells(label)], label, unsafe)
