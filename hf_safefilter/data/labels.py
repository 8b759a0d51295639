"""Labels: which rows a person has labelled unsafe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_safefilter.errors import DataError

_SHOWN = 8


def same_label(cell: Any, unsafe: str | int | bool) -> bool:
    """Whether a label means unsafe; 1, True and "1" are equal, so that they can be written on a command line."""
    if isinstance(cell, (bool, np.bool_)):
        cell = int(cell)
    if isinstance(unsafe, bool):
        unsafe = int(unsafe)
    return bool(cell == unsafe or str(cell) == str(unsafe))


def truth_of(cells: Sequence[Any], label: str, unsafe: str | int | bool) -> np.ndarray:
    """float64 (n,): 1 = unsafe, 0 = any other label, NaN = no label.

    Args:
        cells: The values of a column of labels.
        label: Name of the column, for the message.
        unsafe: The value that means unsafe.

    Raises:
        DataError: There are not labels of both kinds.
    """
    truth = np.array([np.nan if cell is None else float(same_label(cell, unsafe)) for cell in cells])
    if not np.isin([0, 1], truth).all():
        values = sorted({str(cell) for cell in cells})
        raise DataError(
            f"column {label!r} must hold labels of both kinds, and {unsafe!r} must be one of them",
            found=", ".join(values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "") if values else "no rows",
            fix="state the value that means unsafe: `unsafe=...`",
        )
    return truth
