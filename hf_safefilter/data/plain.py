"""Values of any host as plain Python: what numpy, torch, pandas, polars, Arrow and jax make of text and turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` as Python's own strings, numbers, lists and dicts, all the way down; what is none of these stays.

    A missing value (None, NaN of a pandas column, pandas' NA) is None.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return str(value) if isinstance(value, np.str_) else value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist") and not isinstance(value, (bytes, bytearray)):  # arrays, also those of one number
        return plain(value.tolist())
    if hasattr(value, "as_py"):  # Arrow scalars
        return plain(value.as_py())
    if hasattr(value, "to_list"):  # polars series
        return plain(value.to_list())
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value


def column_cells(column: Any) -> list[Any]:
    """The cells of a column as plain values, one a row."""
    if hasattr(column, "to_pylist"):
        return [plain(cell) for cell in column.to_pylist()]
    if isinstance(column, Sequence) and not isinstance(column, (str, bytes)):
        return [plain(cell) for cell in column]
    cells = plain(column)
    return cells if isinstance(cells, list) else [cells]


def as_turns(value: Any) -> Any:
    """Turns that are a struct of lists, as `datasets` once kept them, as the list of turns that they are."""
    if isinstance(value, dict) and value and all(isinstance(cells, list) for cells in value.values()):
        lengths = {len(cells) for cells in value.values()}
        if len(lengths) == 1:
            names = list(value)
            return [dict(zip(names, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value
