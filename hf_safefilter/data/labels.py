"""Labels: which rows a person has labelled unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_safefilter.checks import suggesting
from hf_safefilter.errors import DataError

_SHOWN = 8
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


def same_label(cell: Any, unsafe: str | int | bool, names: Sequence[str] = ()) -> bool:
    """Whether a label means unsafe, by any spelling: 1, True, "1", "true" and "yes" are the same, and upper case too.

    Args:
        cell: The label.
        unsafe: The value that means unsafe.
        names: Names of the classes, where labels are their numbers.
    """
    return not _spellings(cell, names).isdisjoint(_spellings(unsafe, ()))


def _spellings(value: Any, names: Sequence[str]) -> frozenset[str]:
    text = str(value.item() if isinstance(value, np.generic) else value).strip().casefold()
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    named = names[value].casefold() if isinstance(value, int) and 0 <= value < len(names) else text
    return next((words for words in (_TRUE, _FALSE) if text in words), frozenset({text})) | {named}


def names_of(part: Any, label: str) -> list[str]:
    """Names of the classes of a column of class labels; empty for any other column."""
    feature = (getattr(part, "features", None) or {}).get(label)
    return list(getattr(feature, "names", None) or [])


def truth_of(cells: Sequence[Any], label: str, unsafe: str | int | bool, names: Sequence[str] = ()) -> np.ndarray:
    """float64 (n,): 1 = unsafe, 0 = any other label, NaN = no label.

    Args:
        cells: The values of a column of labels.
        label: Name of the column, for the message.
        unsafe: The value that means unsafe.
        names: Names of the classes, where labels are their numbers.

    Raises:
        DataError: There are not labels of both kinds.
    """
    truth = np.array([np.nan if cell is None else float(same_label(cell, unsafe, names)) for cell in cells])
    if not np.isin([0, 1], truth).all():
        values = [*names] or sorted({str(cell) for cell in cells})
        raise DataError(
            f"column {label!r} must hold labels of both kinds, and {unsafe!r} must be one of them",
            found=", ".join(values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "") if values else "no rows",
            fix=suggesting(unsafe, values, "state the value that means unsafe: `unsafe=...`"),
        )
    return truth
