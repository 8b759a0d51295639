"""Labels as truth: which rows a person has called unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_safefilter.errors import DataError

_SHOWN = 8


def same_label(cell: Any, unsafe: Any) -> bool:
    """Whether a label means unsafe; 1, True and "1" are alike, so that a shell can say them."""
    if isinstance(cell, (bool, np.bool_)):
        cell = int(cell)
    if isinstance(unsafe, bool):
        unsafe = int(unsafe)
    return bool(cell == unsafe or str(cell) == str(unsafe))


def truth_of(cells: Sequence[Any], label: str, unsafe: Any) -> np.ndarray:
    """float64 (n,): 1 = unsafe, 0 = any other label, NaN = no label.

    Args:
        cells: a column of labels.
        label: its name, for the message.
        unsafe: the value that means unsafe.

    Raises:
        DataError: there are not labels of both kinds.
    """
    truth = np.array([np.nan if cell is None else float(same_label(cell, unsafe)) for cell in cells])
    if not np.isin([0, 1], truth).all():
        seen = sorted({str(cell) for cell in cells})
        raise DataError(
            f"column {label!r} must hold labels of both kinds, and {unsafe!r} must be one of them",
            found=", ".join(seen[:_SHOWN]) + (", ..." if len(seen) > _SHOWN else "") if seen else "no rows",
            fix="name the value that means unsafe: unsafe=...",
        )
    return truth
