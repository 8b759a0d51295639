"""What becomes of rows that are found dangerous: they are dropped, switched, or trained on in part.

- ``drop``: the row goes.
- ``switch``: the two sides of a preference pair are exchanged, so that what was preferred is now what is not.
- ``mask``: the dangerous answers of a conversation get ``weight: 0``, as OpenAI and axolotl write it, and the other
  answers are trained on. A row of which no answer would be left goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import answers_in, conversations
from hf_safefilter.data.shapes import TURNS
from hf_safefilter.errors import DataError, MissingError

Action = Literal["drop", "switch", "mask"]

WEIGHT = "weight"
"""Key of a turn that says how much it is trained on: 0 is not at all."""

CHOSEN, REJECTED = "chosen", "rejected"


def switched(table: pa.Table, dangerous: np.ndarray, columns: Mapping[str, str] | None = None) -> pa.Table:
    """The rows with ``chosen`` and ``rejected`` exchanged where `dangerous`, bool (n,).

    All columns that differ by these words alone are exchanged, such as ``score_chosen`` and ``score_rejected``.

    Args:
        table: The rows.
        dangerous: Which rows are changed.
        columns: What stands where, for rows of no known shape.

    Raises:
        MissingError: There are no two such columns.
        DataError: Two such columns have different types.
    """
    pairs = list(dict.fromkeys(_sides(table, columns or {})))
    if not pairs:
        raise MissingError(
            "there are no columns of a chosen and a rejected answer to switch",
            found=", ".join(table.column_names),
            fix="use the action drop",
        )
    places = np.arange(len(dangerous))
    other = places + len(places)
    for chosen, rejected in pairs:
        sides = [table[chosen], table[rejected]]
        if sides[0].type != sides[1].type:
            raise DataError(
                f"columns {chosen!r} and {rejected!r} cannot be switched: they have different types",
                found=f"{sides[0].type} and {sides[1].type}",
                fix="give them one type, or use the action drop",
            )
        both = pa.concat_arrays([chunk for side in sides for chunk in side.chunks]) if table.num_rows else sides[0]
        swapped = {chosen: np.where(dangerous, other, places), rejected: np.where(dangerous, places, other)}
        for name, indices in swapped.items():
            column = both.take(pa.array(indices)) if table.num_rows else both
            table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    return table


def _sides(table: pa.Table, columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if {CHOSEN, REJECTED} <= set(columns):
        yield columns[CHOSEN], columns[REJECTED]
    for name in table.column_names:
        partner = name.replace(CHOSEN, REJECTED)
        if partner != name and partner in table.column_names:
            yield name, partner


def masked(
    table: pa.Table, flagged: list[set[int]], columns: Mapping[str, str] | None = None
) -> tuple[pa.Table, np.ndarray]:
    """The rows with weight 0 at flagged turns, and where something is left to train on, bool (n,).

    Args:
        table: The rows.
        flagged: Indices among the messages of each row.
        columns: What stands where, for rows of no known shape.

    Raises:
        DataError: Turns have a weight that is no number, or a row has fewer turns than are flagged.
    """
    name = (columns or {}).get("messages") or next((name for name in TURNS if name in table.column_names), None)
    left = np.array([not turns for turns in flagged], bool)
    if name is None or not _holds_turns(table.schema.field(name).type):
        return table, left
    column = table[name].combine_chunks()
    counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.cumsum(counts) - counts
    turns = column.flatten()
    weights = _weights(turns)
    for row, conversation in enumerate(conversations(Batch(table), columns)):
        shift = len(conversation.messages) - int(counts[row])  # turns of other columns stand before these
        if not flagged[row] or shift < 0:
            continue
        if max(flagged[row]) >= len(conversation.messages):
            raise DataError(
                f"turn {max(flagged[row])} is to be masked in a row of {len(conversation.messages)} turns",
                fix="decide on this row again",
            )
        if min(flagged[row]) < shift:
            continue  # an answer in another column has no weight of its own
        for turn in flagged[row]:
            weights[starts[row] + turn - shift] = 0
        left[row] = bool({*answers_in(conversation.messages)} - flagged[row])
    weighted = _weighted_texts(turns, weights) if _is_json(turns.type) else _weighted_structs(turns, weights)
    return table.set_column(table.column_names.index(name), name, _as_lists(column, weighted)), left


def _holds_turns(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return pa.types.is_struct(kind.value_type) or _is_json(kind.value_type)


def _is_json(kind: pa.DataType) -> bool:
    """Whether turns are JSON, as `datasets` holds those that do not all have the same keys."""
    return isinstance(kind, pa.JsonType)


def _weights(turns: pa.StructArray | pa.ExtensionArray) -> list[float | int | None]:
    if _is_json(turns.type):
        return [None] * len(turns)  # those that have one keep it
    at = turns.type.get_field_index(WEIGHT)
    if at < 0:
        return [None] * len(turns)
    kind = turns.type.field(at).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"the weights of turns are {kind}, not numbers", fix="make them numbers, or use the action drop"
        )
    return turns.field(WEIGHT).to_pylist()


def _weighted_texts(turns: pa.ExtensionArray, weights: list[float | int | None]) -> pa.ExtensionArray:
    texts = turns.storage.to_pylist()
    for place, weight in enumerate(weights):
        if weight is not None:
            texts[place] = json.dumps({**json.loads(texts[place]), WEIGHT: weight}, ensure_ascii=False)
    return pa.ExtensionArray.from_storage(turns.type, pa.array(texts, turns.type.storage_type))


def _weighted_structs(turns: pa.StructArray, weights: list[float | int | None]) -> pa.StructArray:
    at = turns.type.get_field_index(WEIGHT)
    kind = turns.type.field(at).type if at >= 0 else pa.int64()
    fields = [field for field in turns.type if field.name != WEIGHT]
    arrays = [turns.field(field.name) for field in fields]
    return pa.StructArray.from_arrays(
        [*arrays, pa.array(weights, kind)], fields=[*fields, pa.field(WEIGHT, kind)], mask=turns.is_null()
    )


def _as_lists(column: pa.ListArray, turns: pa.Array) -> pa.ListArray:
    """`turns` in lists as long as those of `column`."""
    counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, turns, mask=column.is_null())
    return lists if len(lists) else pa.nulls(0, lists.type)
