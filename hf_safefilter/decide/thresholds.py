"""Rules that find a threshold: by a count, a share, a value, labelled rows, or a guarantee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hf_safefilter.checks import is_whole, require_choice, require_number, require_share
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.labels import names_of, truth_of
from hf_safefilter.data.reasons import listed, next_step, reasons_in
from hf_safefilter.decide.conformal import conformal_threshold
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
    ways = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold, "label": label,
            "known_good": known_good}  # fmt: skip
    passed = [name for name, value in ways.items() if value is not None]
    if len(passed) != 1:
        raise OptionError(
            f"exactly one of {', '.join(ways)} must be passed", found=", ".join(passed) or "none", fix="choose one"
        )
    _refuse_unrelated(passed[0], rule=rule, max_fpr=max_fpr, max_loss=max_loss, confidence=confidence)
    if threshold is not None:
        require_number("threshold", threshold)
        return Threshold(threshold, f"score below {threshold:.6g}, given by hand")
    if known_good is not None:
        if max_loss is None or confidence is None:
            raise OptionError(
                "known_good needs max_loss and confidence", fix="pass for example `max_loss=0.05` and `confidence=0.95`"
            )
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
        return _labelled(scores, labels_of(ds, label, unsafe), rule, max_fpr)
    return _ranked(scores[np.isfinite(scores)], drop_fraction, drop_count)


_GOES_WITH = {"rule": "label", "max_fpr": "label", "max_loss": "known_good", "confidence": "known_good"}


def _refuse_unrelated(way: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None and _GOES_WITH[name] != way:
            raise OptionError(f"{name} is used with {_GOES_WITH[name]}, not with {way}", fix=f"leave {name} out")


def _ranked(scores: np.ndarray, fraction: float | None, count: int | None) -> Threshold:
    n = len(scores)
    if fraction is not None:
        require_share("drop_fraction", fraction, example=0.02)
        count = max(1, round(fraction * n))
    elif count is None or not is_whole(count) or not 1 <= count < max(n, 1):
        raise OptionError(
            f"`drop_count={count!r}` does not fit {n} scored rows", fix="use a number from 1, and fewer than all rows"
        )
    if n < 2:
        raise DataError(
            f"{n} rows could be scored, which are too few to rank", fix="see the reasons in column 'unscorable'"
        )
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


def _labelled(scores: np.ndarray, labels: np.ndarray, rule: str | None, max_fpr: float | None) -> Threshold:
    from sklearn.metrics import precision_recall_curve, roc_curve

    used = np.isfinite(scores) & np.isfinite(labels)
    scores, labels = scores[used], labels[used].astype(bool)
    if labels.all() or not labels.any():
        raise DataError(
            "the rows that could be scored must have labels of both kinds",
            found=f"{int(labels.sum())} unsafe, {int((~labels).sum())} safe",
            fix="check the label column and the value that means unsafe",
        )
    rule = rule or ("best_f1" if max_fpr is None else "tpr_at_fpr")
    require_choice("rule", rule, ("best_f1", "tpr_at_fpr"))
    if rule == "best_f1":
        if max_fpr is not None:
            raise OptionError("max_fpr is used with tpr_at_fpr, not with best_f1", fix="pass `rule='tpr_at_fpr'`")
        precision, recall, values = precision_recall_curve(labels, scores)
        f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-300)
        best = len(f1) - 1 - int(np.argmax(f1[::-1]))  # the highest of equal ones loses the fewest rows
        return Threshold(float(values[best]), f"best F1 ({f1[best]:.3f}) on {len(labels)} labelled rows")
    require_share("max_fpr", max_fpr)
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
