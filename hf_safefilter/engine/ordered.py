"""Rows cut into numbered pieces that are processed independently, and put in order again afterwards.

A piece holds as many rows as a step gets at once in this process (`ROWS_PER_CALL`), so that an engine returns the same
values to the last bit. It is transferred as Arrow IPC bytes, so that an engine's own types never touch its columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.errors import DataError, SafefilterError
from hf_safefilter.step import ROWS_PER_CALL

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_PIECES, _ROWS_PER_PIECE = 16, 8  # at most, in a sample


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a data set.

    Attributes:
        start: Index of the first row.
        last: Whether these are the last rows.
        table: The rows.
    """

    start: int
    last: bool
    table: pa.Table


@dataclass(frozen=True, slots=True)
class NewColumns:
    """What an engine returns for one data set.

    Attributes:
        rows: The columns that were asked for, with one row for each row of the data set, in its order.
        sample: A few rows with all columns, as they were read, to score them again.
        indices: The indices of these rows in the data set.
    """

    rows: Dataset
    sample: Dataset
    indices: list[int]


def cut(rows: Dataset | IterableDataset) -> Iterator[Piece]:
    """The rows in pieces, which are read as they are asked for."""
    start, previous = 0, None
    for table in rows.with_format("arrow").iter(ROWS_PER_CALL):
        if previous is not None:
            yield Piece(start, False, previous)
            start += previous.num_rows
        previous = table
    if previous is not None:
        yield Piece(start, True, previous)


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
    """The tables of pieces in the order of their rows; pieces that come too early wait in memory.

    Raises:
        DataError: There are no pieces.
        SafefilterError: A piece came twice, or is missing at the end.
    """
    waiting: dict[int, Piece] = {}
    next_row, ended, empty = 0, False, True
    for piece in pieces:
        empty = False
        if piece.start in waiting or piece.start < next_row:
            raise _wrong_rows(f"rows from {piece.start} on came twice")
        waiting[piece.start] = piece
        while next_row in waiting:
            ready = waiting.pop(next_row)
            next_row += ready.table.num_rows
            ended = ended or ready.last
            yield ready.table
    if empty:
        raise DataError("there are no rows", fix="check the source and its split")
    if waiting or not ended:
        raise _wrong_rows(f"rows from {next_row} on are missing")


def _wrong_rows(found: str) -> SafefilterError:
    return SafefilterError("the engine did not return every row once", found=found, fix="run the same command again")


def some_rows(table: pa.Table) -> tuple[list[int], pa.Table]:
    """A few rows spread over a table: their indices in it, and the rows."""
    last, steps = table.num_rows - 1, _ROWS_PER_PIECE - 1
    indices = sorted({step * last // steps for step in range(_ROWS_PER_PIECE)})
    return indices, table.take(indices)


class Sample:
    """Some rows of some pieces, spread over the data set: when there are too many pieces, every other one is dropped.

    Which pieces are in the sample depends on their indices alone, not on the order in which they come.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, tuple[list[int], pa.Table]] = {}
        self._stride = 1

    def offer(self, start: int, indices: list[int], rows: pa.Table) -> None:
        """Add `some_rows` of the piece that begins at row `start`, if the sample includes this piece."""
        if not self._includes(start):
            return
        self._pieces[start] = [start + index for index in indices], rows
        while len(self._pieces) > _PIECES:
            self._stride *= 2
            self._pieces = {start: rows for start, rows in self._pieces.items() if self._includes(start)}

    def with_columns(self, columns: Dataset) -> NewColumns:
        """What an engine returns: the new columns, and this sample."""
        from datasets import Dataset

        pieces = [self._pieces[start] for start in sorted(self._pieces)]
        table = pa.concat_tables([rows for _, rows in pieces], promote_options="permissive")
        return NewColumns(columns, Dataset(table), [index for indices, _ in pieces for index in indices])

    def _includes(self, start: int) -> bool:
        return start // ROWS_PER_CALL % self._stride == 0
