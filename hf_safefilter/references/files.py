"""The files of a reference set and their content."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.stored_conversations import from_json, to_json
from hf_safefilter.data.vectors import unit
from hf_safefilter.references.flat import flat_index, to_bytes

SIDES = ("unsafe", "safe")
VECTORS = "vectors.safetensors"
ROWS = "rows.parquet"
_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("side", pa.string()),
        ("position", pa.int32()),
        ("spans", pa.int32()),
        ("benign", pa.bool_()),
        ("conversation", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One reference row.

    Attributes:
        row_id: Its id, as in the `row_id` column of a data set.
        side: "unsafe" or "safe".
        position: Its index among the rows of its side, from 0.
        spans: In how many spans it was read: as many vectors are its own.
        benign: Whether it is an ordinary row of the safe side, and not a refusal.
        conversation: What it says.
    """

    row_id: str
    side: str
    position: int
    spans: int
    benign: bool
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Side:
    """The rows of one side that were read.

    Attributes:
        conversations: What they say.
        ids: Their row ids.
        spans: In how many spans each was read.
        truncated: How many rows were cut.
        benign: How many rows, the last ones, are ordinary ones.
        vectors: Layer -> float32 `(m, d)`: those of the spans of the first row, then of the second, ...
    """

    conversations: list[Conversation]
    ids: list[str]
    spans: list[int]
    truncated: int
    benign: int
    vectors: dict[Layer, np.ndarray]


def index_name(layer: Layer, side: str) -> str:
    """Name of the FAISS file of a side at a layer."""
    return f"index_{layer}_{side}.faiss"


def to_files(sides: Mapping[str, Side]) -> dict[str, bytes]:
    """File name -> content."""
    from safetensors.numpy import save

    tensors = {f"{side}.{layer}": value for side in SIDES for layer, value in sides[side].vectors.items()}
    indexes = {
        index_name(layer, side): to_bytes(flat_index(unit(value)))
        for side in SIDES
        for layer, value in sides[side].vectors.items()
    }
    return {VECTORS: save(tensors), ROWS: _rows_bytes(sides), **indexes}


def read_rows(content: bytes) -> tuple[ReferenceRow, ...]:
    """All rows of a rows file, in the order of the file."""
    return tuple(
        ReferenceRow(
            row["row_id"],
            row["side"],
            row["position"],
            row["spans"],
            row["benign"],
            from_json(row["conversation"]),
        )
        for row in pq.read_table(pa.BufferReader(content), schema=_SCHEMA).to_pylist()
    )


def _rows_bytes(sides: Mapping[str, Side]) -> bytes:
    rows = [
        {
            "row_id": row_id,
            "side": side,
            "position": position,
            "spans": spans,
            "benign": position >= len(sides[side].ids) - sides[side].benign,
            "conversation": to_json(conversation),
        }
        for side in SIDES
        for position, (row_id, spans, conversation) in enumerate(
            zip(sides[side].ids, sides[side].spans, sides[side].conversations, strict=True)
        )
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    return sink.getvalue()
