"""Spans as a column: what of a row was read, in NumPy and in Arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hf_safefilter.data.ragged import Ragged

SPAN = np.dtype([("turn", np.int32), ("rejected", np.bool_), ("start", np.int32), ("stop", np.int32)])
"""A stretch of a row that has vectors: its turn among the messages, whether it stands in the rejected side of a
preference pair, its first token, and one past its last."""

_FIELDS = [pa.field(name, pa.from_numpy_dtype(SPAN[name])) for name in SPAN.names or ()]
SPANS_TYPE = pa.list_(pa.struct(_FIELDS))
"""The type of the column in Arrow."""


def spans_to_arrow(rows: Ragged) -> pa.Array:
    """Arrow `SPANS_TYPE` of the spans of each row."""
    parts = [pa.array(np.ascontiguousarray(rows.values[field.name])) for field in _FIELDS]
    return pa.ListArray.from_arrays(
        pa.array(rows.offsets.astype(np.int32)), pa.StructArray.from_arrays(parts, fields=_FIELDS)
    )


def spans_from_arrow(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """The spans of each row of a column of `SPANS_TYPE`; a null row has none.

    Raises:
        ValueError: The column has another type.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = []
    for chunk in chunks:
        structs = chunk.flatten()
        if not pa.types.is_struct(structs.type) or {*(SPAN.names or ())} - {field.name for field in structs.type}:
            raise ValueError(f"{chunk.type} is no column of spans")
        values = np.empty(len(structs), SPAN)
        for name in SPAN.names or ():
            values[name] = structs.field(name).to_numpy(zero_copy_only=False)
        counts = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        parts.append(Ragged(values, offsets))
    return Ragged.joined(parts) if parts else Ragged(np.empty(0, SPAN), np.zeros(1, np.int64))


def spans_of(cells: Sequence[Sequence[Mapping[str, Any]] | None]) -> Ragged:
    """The spans of each row from plain values."""
    names = SPAN.names or ()
    rows = [np.array([tuple(span[name] for name in names) for span in cell or ()], SPAN) for cell in cells]
    return Ragged.of(rows, np.empty(0, SPAN))
