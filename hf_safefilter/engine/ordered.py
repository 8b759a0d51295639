"""Rows cut into numbered pieces that travel alone, and put in order again when they come back.

A piece holds as many rows as a step is handed at once everywhere else (`ROWS_PER_CALL`), so that an engine gives the
values of the plain way to the last bit. It travels as Arrow IPC bytes: no engine's own types touch its columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_safefilter.errors import DataError, SafefilterError
from hf_safefilter.step import ROWS_PER_CALL

if TYPE_CHECKING:
    from datasets import Dataset

_PIECES, _PER_PIECE = 16, 8  # of a sample


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows, by their place in the set.

    Attributes:
        start: place of the first row.
        last: whether no row comes after these.
        table: the rows.
    """

    start: int
    last: bool
    table: pa.Table


@dataclass(frozen=True, slots=True)
class NewColumns:
    """What an engine gives back for one data set.

    Attributes:
        rows: the columns that were asked for, a row for each row of the set, in its order.
        sample: a few whole rows, as they were read, to score again.
        places: their places.
    """

    rows: Dataset
    sample: Dataset
    places: list[int]


def cut(rows: Any) -> Iterator[Piece]:
    """A `Dataset` or `IterableDataset` in pieces, read as they are asked for."""
    start, before = 0, None
    for table in rows.with_format("arrow").iter(ROWS_PER_CALL):
        if before is not None:
            yield Piece(start, False, before)
            start += before.num_rows
        before = table
    if before is not None:
        yield Piece(start, True, before)


def pack(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(content: bytes) -> pa.Table:
    """The table in an Arrow IPC stream."""
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()


def in_order(pieces: Iterable[Piece]) -> Iterator[pa.Table]:
    """The tables of pieces by their places, whatever order they come in; those ahead of their turn wait in memory.

    Raises:
        DataError: there are none.
        SafefilterError: a piece came twice, or is missing at the end.
    """
    waiting: dict[int, Piece] = {}
    turn, done, seen = 0, False, False
    for piece in pieces:
        seen = True
        if piece.start in waiting or piece.start < turn:
            raise _broken(f"rows from {piece.start} on came twice")
        waiting[piece.start] = piece
        while turn in waiting:
            ready = waiting.pop(turn)
            turn += ready.table.num_rows
            done = done or ready.last
            yield ready.table
    if not seen:
        raise DataError("there are no rows", fix="check the source and its split")
    if waiting or not done:
        raise _broken(f"rows from {turn} on never came back")


def _broken(found: str) -> SafefilterError:
    return SafefilterError("the engine did not give every row back once", found=found, fix="run the same command again")


def some_rows(table: pa.Table) -> tuple[list[int], pa.Table]:
    """A few rows spread over a table: their places in it, and they themselves."""
    places = sorted({at * (table.num_rows - 1) // (_PER_PIECE - 1) for at in range(_PER_PIECE)})
    return places, table.take(places)


class Sample:
    """Some rows of some pieces, thinned out as they come, so that those that stay are spread over the set.

    Which ones stay depends on their places alone, not on the order in which pieces come.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[list[int], pa.Table]] = {}
        self._stride = 1

    def offer(self, start: int, places: list[int], rows: pa.Table) -> None:
        """Take `some_rows` of the piece from `start` on, or not."""
        if not self._stays(start):
            return
        self._kept[start] = [start + place for place in places], rows
        while len(self._kept) > _PIECES:
            self._stride *= 2
            self._kept = {start: some for start, some in self._kept.items() if self._stays(start)}

    def beside(self, rows: Dataset) -> NewColumns:
        """What an engine gives back: `rows`, and this sample."""
        from datasets import Dataset

        chosen = [self._kept[start] for start in sorted(self._kept)]
        table = pa.concat_tables([some for _, some in chosen], promote_options="permissive")
        return NewColumns(rows, Dataset(table), [place for places, _ in chosen for place in places])

    def _stays(self, start: int) -> bool:
        return start // ROWS_PER_CALL % self._stride == 0
