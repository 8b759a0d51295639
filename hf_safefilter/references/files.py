"""The files of a reference set and their content."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.checks import is_whole
from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.stored_conversations import from_json, to_json
from hf_safefilter.data.vectors import unit
from hf_safefilter.errors import IntegrityError
from hf_safefilter.references.flat import flat_index, to_bytes

SIDES = ("unsafe", "safe")
VECTORS = "vectors.safetensors"
ROWS = "rows.parquet"
_BUILD_AGAIN = "build them again: hf-safefilter reference build --help"
_LAYER = re.compile(r"(norm|\d{1,5}_[a-z]\w{0,40}|norm_[a-z]\w{0,40})")
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


def require_sound_facts(facts: Mapping[str, Any]) -> None:
    """Raise unless a manifest states what every reader of references relies on.

    Raises:
        IntegrityError: A fact is missing, or of another kind.
    """
    counts, layers = facts.get("counts"), facts.get("layers")
    sound = {
        "license": isinstance(facts.get("license"), str),
        "source": isinstance(facts.get("source"), str),
        "embed": isinstance(facts.get("embed"), dict),
        "layers": isinstance(layers, list) and bool(layers) and all(map(_is_layer, layers)),
        "counts": isinstance(counts, dict) and all(is_whole(counts.get(side)) for side in SIDES),
        "benign": is_whole(facts.get("benign")),
        "truncated": isinstance(facts.get("truncated"), dict) and all(map(is_whole, facts["truncated"].values())),
    }
    wrong = [name for name, fine in sound.items() if not fine]
    if wrong:
        raise IntegrityError(
            "these references are not what this program writes", found=f"no sound {', '.join(wrong)}", fix=_BUILD_AGAIN
        )


def _is_layer(value: Any) -> bool:
    """Whether a manifest may name this as a layer: a number, or as `columns.Layer` writes other readings."""
    return is_whole(value) or (isinstance(value, str) and _LAYER.fullmatch(value) is not None)


def read_rows(content: bytes, counts: Mapping[str, int]) -> tuple[ReferenceRow, ...]:
    """All rows of a rows file, in the order of the file.

    Raises:
        IntegrityError: It is no such file, or has another number of rows than `counts` says for a side.
    """
    try:
        rows = tuple(
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
        fits = all(sum(row.side == side for row in rows) == counts[side] for side in SIDES)
        if not fits or not all(is_whole(row.spans) and row.spans >= 0 for row in rows):
            raise ValueError("other numbers of rows or spans than the manifest states")
    except (pa.ArrowException, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            "the rows of these references are damaged", found=str(error)[:200], fix=_BUILD_AGAIN
        ) from error
    return rows


def read_vectors(content: bytes, layers: Iterable[Layer], rows: Iterable[ReferenceRow]) -> dict[str, np.ndarray]:
    """``"<side>.<layer>"`` -> float32 `(m, d)`.

    Raises:
        IntegrityError: A layer or side is missing, or has not one vector of finite numbers for each span of `rows`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    spans = dict.fromkeys(SIDES, 0)
    for row in rows:
        spans[row.side] += row.spans
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(
            "the vectors of these references are damaged", found=str(error), fix=_BUILD_AGAIN
        ) from error
    for side, layer in product(SIDES, layers):
        vectors = tensors.get(f"{side}.{layer}")
        sound = vectors is not None and vectors.ndim == 2 and len(vectors) == spans[side] and vectors.dtype.kind == "f"
        if vectors is None or not sound or not np.isfinite(vectors).all():
            shape = "none" if vectors is None else f"{vectors.dtype} of shape {vectors.shape}"
            raise IntegrityError(
                f"these references have no sound {side} vectors of layer {layer}", found=shape, fix=_BUILD_AGAIN
            )
    return tensors


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
