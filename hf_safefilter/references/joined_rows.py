"""References and rows of a data set that a person has judged: one set, made without reading a model again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import ROW_ID, SPANS, TRUNCATED, embedding_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.splits import missing_column
from hf_safefilter.data.vectors import lengths
from hf_safefilter.errors import DataError, IntegrityError, MissingError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.model.reading_options import HOW
from hf_safefilter.references.files import SIDES, Side
from hf_safefilter.references.index import ReferenceIndex

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.columns import Layer

BASE, JOINED_FROM = "base", "joined_from"
"""The facts that name the digest of the references that rows have joined, and the data set of these rows."""


def base_of(index: ReferenceIndex, data_set: Sequence[str]) -> ReferenceIndex:
    """The references without the rows of a data set that have joined them; the references themselves, if none have.

    What a manifest names as its base is believed only if all rows of that stand in the references too.

    Args:
        index: The references.
        data_set: What identifies the data set, as `with_rows` was told.
    """
    if index.facts.get(JOINED_FROM) != list(data_set):
        return index
    try:
        base = ReferenceIndex.of(str(index.facts.get(BASE)))
    except (MissingError, IntegrityError):  # it was made on another machine, or is none: what has joined stays
        return index
    same = all(set(_ids(base, side)) <= set(_ids(index, side)) for side in SIDES)
    read = [{name: value for name, value in one.embed.items() if name not in HOW} for one in (base, index)]
    return base if same and read[0] == read[1] else index


def with_rows(
    index: ReferenceIndex,
    unsafe: Dataset,
    benign: Dataset,
    *,
    mapping: Mapping[str, str] | None,
    data_set: Sequence[str],
) -> ReferenceIndex:
    """References with more unsafe and more ordinary rows, at those layers at which the rows were read too.

    The rows' vectors are taken as they are stored, which may be in float16. The licence of the rows is not known here:
    the new set says that they are under their own.

    Args:
        index: The references to begin with.
        unsafe: Embedded rows of one answer each, read as the references were; may have no rows.
        benign: The same, for the ordinary rows of the safe side.
        mapping: Where things stand in a row, as it was embedded.
        data_set: Name of the data set, and what else identifies it, such as its revision.

    Returns:
        The new set; `index` itself if all of the rows stand in it.

    Raises:
        MissingError: The rows lack ids, spans or vectors.
        DataError: A row could not be read, or is a preference pair, has several answers, or stands among the
            references of the other side.
    """
    names = unsafe.column_names if len(unsafe) else benign.column_names
    layers = [layer for layer in index.layers if embedding_column(layer) in names]
    if not layers:
        raise DataError("the rows were not read at a layer of the references", fix="embed them at the same layers")
    known = {row.row_id: row.side for side in SIDES for row in index.rows(side)}
    rows = dict(zip(SIDES, (unsafe, benign), strict=True))
    added = {side: _side(side, rows[side], known, layers, mapping) for side in SIDES}
    sides = {side: _joined(_stored(index, side, layers), added[side]) for side in SIDES}
    count, name = sum(len(side.ids) for side in added.values()), shown(data_set[0])
    if not count:
        return index
    return ReferenceIndex.of_sides(
        sides,
        index.embed,
        license=f"{index.license}; rows of {name}: their own",
        source=f"{index.source}; {count} rows of {name}, chosen by people",
        more={BASE: index.digest, JOINED_FROM: list(data_set)},
    )


def _ids(index: ReferenceIndex, side: str) -> list[str]:
    return [row.row_id for row in index.rows(side)]


def _side(
    side: str, rows: Dataset, known: Mapping[str, str], layers: Sequence[Layer], mapping: Mapping[str, str] | None
) -> Side:
    """The rows that join a side; those that already stand there are left out."""
    other = SIDES[1 - SIDES.index(side)]
    for name in (ROW_ID, SPANS, TRUNCATED, *map(embedding_column, layers)):
        if len(rows) and name not in rows.column_names:
            raise missing_column(name, rows.column_names, "embed the rows at the layers of the references")
    ids: list[str] = rows[ROW_ID][:] if len(rows) else []
    if both := [name for name in ids if known.get(name) == other]:
        raise DataError(
            f"{len(both)} rows that are to join the {side} references stand among the {other} ones",
            found=", ".join(both[:5]),
            fix="decide otherwise on these rows, or do not add them to the references",
        )
    places = {name: place for place, name in reversed(list(enumerate(ids))) if name not in known}
    fresh = sorted(places.values())
    if not fresh:
        return Side([], [], [], 0, 0, {layer: np.empty((0, 0), np.float32) for layer in layers})
    rows = rows.select(fresh)
    batch = Batch(rows.with_format("arrow")[:])
    vectors = {layer: batch.vectors(embedding_column(layer)) for layer in layers}
    spans = batch.spans()
    assert spans is not None  # among the columns
    conversations = as_conversations(rows, mapping)
    for place, (at, said) in enumerate(zip(fresh, conversations, strict=True)):
        answers = len(set(spans.row(place)["turn"].tolist()))
        whole = all(np.isfinite(lengths(of_layer.row(place))).all() for of_layer in vectors.values())
        if said.rejected is not None or answers != 1 or not whole:
            pair = "a preference pair" if said.rejected is not None else f"a row with {answers} answers that were read"
            raise DataError(
                "only a row of one answer, which was read, can join the references",
                found=f"{ids[at]}: {pair if whole else 'a vector that is zero or not finite'}",
                fix="do not add this row",
            )
    values = {layer: of_layer.values.astype(np.float32) for layer, of_layer in vectors.items()}
    truncated = sum(map(bool, batch.cells(TRUNCATED)))
    benign = len(fresh) if side == "safe" else 0
    return Side(list(conversations), [ids[place] for place in fresh], spans.counts.tolist(), truncated, benign, values)


def _stored(index: ReferenceIndex, side: str, layers: Sequence[Layer]) -> Side:
    """A side of references, as it was read."""
    rows = index.rows(side)
    return Side(
        [row.conversation for row in rows],
        [row.row_id for row in rows],
        [row.spans for row in rows],
        index.facts["truncated"].get(side, 0),
        sum(row.benign for row in rows),
        {layer: index.vectors(layer)[SIDES.index(side)] for layer in layers},
    )


def _joined(one: Side, other: Side) -> Side:
    if not other.ids:
        return one
    return Side(
        one.conversations + other.conversations,
        one.ids + other.ids,
        one.spans + other.spans,
        one.truncated + other.truncated,
        one.benign + other.benign,
        {layer: np.concatenate([values, other.vectors[layer]]) for layer, values in one.vectors.items()},
    )
