"""Reading both sides of a reference set, and refusing sets that nothing can be told from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import row_id
from hf_safefilter.data.vectors import lengths, unit
from hf_safefilter.errors import DataError
from hf_safefilter.references.files import Side

_SMALLEST_DIRECTION = 1e-6
_SHOWN = 5


def read_sides(rows: Mapping[str, Any], embed: Any) -> dict[str, Side]:
    """Embed the rows of both sides ("unsafe" and "safe") and check them.

    Args:
        rows: side -> data set or iterable of rows.
        embed: anything with `vectors(rows) -> (vectors by layer, conversations, reasons)`.

    Raises:
        DataError: see `ReferenceIndex.build`.
    """
    sides = {side: _read(side, given, embed) for side, given in rows.items()}
    unsafe, safe = sides["unsafe"], sides["safe"]
    _refuse_shared(unsafe.ids, safe.ids)
    for layer in unsafe.vectors:
        _refuse_zero_direction(layer, unsafe.vectors[layer], safe.vectors[layer])
    return sides


def _read(side: str, rows: Any, embed: Any) -> Side:
    rows = rows if hasattr(rows, "__len__") else list(rows)
    if not len(rows):
        raise DataError(f"there are no {side} reference rows", fix="pass at least one row on each side")
    vectors, conversations, reasons = embed.vectors(rows)
    _refuse_unreadable(side, vectors, reasons)
    ids = [row_id(conversation) for conversation in conversations]
    if len(ids) > 1 and len(set(ids)) == 1:
        raise DataError(f"all {len(ids)} {side} reference rows are the same row", fix="pass different rows")
    kept = {layer: np.ascontiguousarray(value, dtype=np.float32) for layer, value in vectors.items()}
    return Side(list(conversations), ids, kept)


def _refuse_unreadable(side: str, vectors: Mapping[Layer, np.ndarray], reasons: Sequence[str]) -> None:
    faults = {position: reason for position, reason in enumerate(reasons) if reason}
    for layer, values in vectors.items():
        for position in np.flatnonzero(np.isnan(lengths(values))).tolist():
            faults.setdefault(position, f"zero or not finite at layer {layer}")
    if faults:
        raise DataError(
            f"{len(faults)} of {len(reasons)} {side} reference rows cannot be read",
            found=_shortened([f"row {position}: {reason}" for position, reason in sorted(faults.items())]),
            fix="mend or remove these rows (counted from 0)",
        )


def _refuse_shared(unsafe: Sequence[str], safe: Sequence[str]) -> None:
    both = set(unsafe) & set(safe)
    if both and both == set(unsafe) | set(safe):
        raise DataError("the unsafe and the safe references are the same rows", fix="check which file is which")
    if both:
        raise DataError(
            f"{len(both)} rows stand on both sides of the references",
            found=_shortened([f"unsafe row {place}" for place, one in enumerate(unsafe) if one in both]),
            fix="a row is either unsafe or safe: remove these from one side (counted from 0)",
        )


def _refuse_zero_direction(layer: Layer, unsafe: np.ndarray, safe: np.ndarray) -> None:
    gap = np.linalg.norm(unit(unsafe.astype(np.float64)).mean(0) - unit(safe.astype(np.float64)).mean(0))
    if gap < _SMALLEST_DIRECTION:
        raise DataError(
            f"at layer {layer} the unsafe and the safe references point the same way: nothing can be told apart there",
            found=f"difference of the mean unit vectors {gap:.1e}",
            fix="leave this layer out (at layer 0 the last token is the same in every row), or use other rows",
        )


def _shortened(parts: Sequence[str]) -> str:
    return "; ".join(parts[:_SHOWN]) + ("; ..." if len(parts) > _SHOWN else "")
