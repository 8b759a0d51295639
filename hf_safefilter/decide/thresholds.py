"""Rules that find a threshold: by a count, a share, a value, labelled rows, or a guarantee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.labels import names_of, truth_of
from hf_safefilter.data.reasons import listed, next_step, reasons_in
from hf_safefilter.decide.conformal import conformal_threshold
from hf_safefilter.decide.threshold_options import checked_way
from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    ScoredRows: TypeAlias = Dataset | DatasetDict | Mapping[str, Any]


class Threshold(float):
    """A number that states how it was found.

    Attributes:
        rule: How it was found, in one sentence.
    """

    rule: str

    def __new__(cls, value: float, rule: str) -> Threshold:
        """A threshold of `value`, found by `rule`."""
        threshold = super().__new__(cls, value)
        threshold.rule = rule
        return threshold

    def __reduce__(self) -> tuple[Any, ...]:
        return Threshold, (float(self), self.rule)


def threshold_for(
    ds: ScoredRows,
    column: str,
    *,
    drop_fraction: float | None = None,
    drop_count: int | None = None,
    threshold: float | None = None,
    label: str | None = None,
    unsafe: str | int | bool = "unsafe",
    rule: str | None = None,
    max_fpr: float | None = None,
    known_good: ScoredRows | np.ndarray | Sequence[float] | None = None,
    max_loss: float | None = None,
    confidence: float | None = None,
) -> Threshold:
    """The threshold at and above which rows are dropped. Pass exactly one way of finding it.

    Args:
        ds: Scored rows: a data set, a `DatasetDict` (all splits together), or a dict of columns.
        column: Name of the score column.
        drop_fraction: Share of the scored rows to drop, in (0, 1).
        drop_count: Number of rows to drop. For a share and a number, rows that tie with the last one are dropped too;
            rows that could not be scored are dropped in any case, and not counted.
        threshold: An absolute value.
        label: Column of labels, used with `rule`; rows without a label are left out.
        unsafe: The label value that means unsafe; every other value means safe.
        rule: ``best_f1`` (default), or ``tpr_at_fpr``: find as many unsafe rows as possible while at most `max_fpr` of
            the safe rows are lost.
        max_fpr: Largest false-positive rate for ``tpr_at_fpr``, in (0, 1).
        known_good: Scored rows known to be good, or their scores, for a threshold with a guarantee.
        max_loss: Largest share of rows like the known-good ones that may be lost, in (0, 1).
        confidence: Confidence that this share is not exceeded, in (0, 1).

    Raises:
        OptionError: No way, several ways, or an option that makes no sense was passed.
        DataError: The rule cannot be applied to these scores or labels.
        MissingError: A column is missing.
    """
    checked_way(
        drop_fraction=drop_fraction, drop_count=drop_count, threshold=threshold, label=label, rule=rule,
        max_fpr=max_fpr, known_good=known_good, max_loss=max_loss, confidence=confidence,
    )  # fmt: skip
    if threshold is not None:
        return Threshold(threshold, f"score below {threshold:.6g}, given by hand")
    if known_good is not None:
        assert max_loss is not None and confidence is not None  # checked above
        good = known_good if isinstance(known_good, (np.ndarray, list, tuple)) else numbers_of(known_good, column)
        value = conformal_threshold(np.asarray(good), max_loss, confidence)
        return Threshold(
            value,
            f"at most {max_loss:g} of rows like the {len(good)} known-good ones are lost, at confidence {confidence:g}",
        )
    scores = numbers_of(ds, column)
    if not np.isfinite(scores).any():
        reasons = reasons_in(ds)
        raise DataError(
            f"0 of {len(scores)} rows could be scored",
            found=listed(reasons) or f"column {column!r} holds no number",
            fix=next_step(reasons, "score the rows again"),
        )
    if label is not None:
        return _labelled(scores, labels_of(ds, label, unsafe), max_fpr)
    return _ranked(scores[np.isfinite(scores)], drop_fraction, drop_count)


def _ranked(scores: np.ndarray, fraction: float | None, count: int | None) -> Threshold:
    n = len(scores)
    if fraction is not None:
        count = max(1, round(fraction * n))
    assert count is not None  # one of the two is passed
    if n < 2:
        raise DataError(f"{n} row could be scored, and ranks need two", fix="add rows, or give a `threshold=...`")
    if count >= n:
        raise OptionError(f"`drop_count={count!r}` does not fit {n} scored rows", fix="use a smaller number")
    value = float(np.partition(scores, n - count)[n - count])
    dropped = int((scores >= value).sum())
    if dropped == n:
        raise DataError(
            f"dropping {count} rows would drop all {n}, because their scores are equal",
            fix="use another score or an absolute threshold",
        )
    share = f"{100 * fraction:.4g} %" if fraction is not None else f"{count}"
    ties = f" ({dropped - count} more tie with the last)" if dropped > count else ""
    return Threshold(value, f"the highest {share} of {n} scored rows dropped{ties}")


def _labelled(scores: np.ndarray, labels: np.ndarray, max_fpr: float | None) -> Threshold:
    from sklearn.metrics import precision_recall_curve, roc_curve

    used = np.isfinite(scores) & np.isfinite(labels)
    scores, labels = scores[used], labels[used].astype(bool)
    if labels.all() or not labels.any():
        raise DataError(
            "the rows that could be scored must have labels of both kinds",
            found=f"{int(labels.sum())} unsafe, {int((~labels).sum())} safe",
            fix="check the label column and the value that means unsafe",
        )
    if max_fpr is None:
        precision, recall, values = precision_recall_curve(labels, scores)
        f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-300)
        best = len(f1) - 1 - int(np.argmax(f1[::-1]))  # the highest of equal ones loses the fewest rows
        return Threshold(float(values[best]), f"best F1 ({f1[best]:.3f}) on {len(labels)} labelled rows")
    fpr, tpr, values = roc_curve(labels, scores, drop_intermediate=False)
    last = int(np.flatnonzero(fpr <= max_fpr)[-1])
    if not np.isfinite(values[last]):
        raise DataError(f"no threshold loses at most {max_fpr:g} of the safe rows", fix="allow a larger max_fpr")
    rate = f"TPR {tpr[last]:.3f} at FPR {fpr[last]:.3f}"
    return Threshold(float(values[last]), f"{rate} (at most {max_fpr:g}) on {len(labels)} labelled rows")


def numbers_of(ds: ScoredRows, column: str) -> np.ndarray:
    """A column of numbers as float64 (n,), read through Arrow; the splits follow one another."""
    return np.concatenate([view.numbers(column) for view in views_of(ds, column)] or [np.empty(0)])


def views_of(ds: ScoredRows, *columns: str) -> list[Batch]:
    """One batch with `columns` for each split."""
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


def labels_of(ds: ScoredRows, label: str, unsafe: str | int | bool) -> np.ndarray:
    """float64 (n,): 1 = unsafe, 0 = any other label, NaN = no label; the splits follow one another.

    Raises:
        DataError: There are not labels of both kinds.
        MissingError: There is no such column.
    """
    parts = ds.values() if isinstance(ds, Mapping) else [ds]
    names = next((found for part in parts if (found := names_of(part, label))), [])
    return truth_of([cell for view in views_of(ds, label) for cell in view.cells(label)], label, unsafe, names)
