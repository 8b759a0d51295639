"""What a step is handed, and how it hands columns back: one view over every host.

`Dataset.map` (batched or row by row, in any format), `IterableDataset.map`, Ray Data's `map_batches` and a plain dict
all pass something else. A `Batch` makes them alike: n rows, columns by name, vectors as NumPy without a detour through
Python lists. `emit` gives each host the form in which it keeps fixed sizes and dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from hf_safefilter.columns import EMBEDDING_PREFIX, SPANS
from hf_safefilter.data.plain import column_cells, plain
from hf_safefilter.data.ragged import Ragged, offsets_of, ragged_from_arrow, ragged_to_arrow
from hf_safefilter.data.shapes import SPOKEN, TEMPLATE_OPTIONS, TOOLS
from hf_safefilter.data.spans import SPAN, spans_from_arrow, spans_of, spans_to_arrow
from hf_safefilter.data.splits import missing_column
from hf_safefilter.errors import DataError

Column: TypeAlias = np.ndarray | Ragged
"""A new column: `(n,)`, `(n, d)`, or any number of vectors or spans a row."""

_EMBED_AGAIN = "embed the rows again"


class Batch:
    """`n` rows of a data set, whatever the host passed them as."""

    __slots__ = ("_data", "_host", "n", "names")

    def __init__(self, data: Any) -> None:
        self._host, self._data = _recognise(data)
        self.names: list[str] = list(self._data.column_names if self._host == "table" else self._data)
        self.n: int = self._count()

    def _count(self) -> int:
        if self.is_row:
            return 1
        if self._host == "table":
            return self._data.num_rows
        if self._host == "lazy_batch":
            return self._data.pa_table.num_rows
        return len(next(iter(self._data.values()))) if len(self._data) else 0

    @property
    def is_row(self) -> bool:
        """Whether the host passed a single row, and wants single values back."""
        return self._host in ("row", "lazy_row")

    def require(self, name: str, fix: str) -> None:
        """Raise `MissingError` with the columns that are there unless `name` is one of them."""
        if name not in self.names:
            raise missing_column(name, self.names, fix)

    def cells(self, name: str) -> list[Any]:
        """The column as a list of `n` plain Python values (text, messages; not for embeddings).

        Raises:
            DataError: A value has two fields of one name.
        """
        arrow = self._arrow(name)
        if arrow is not None:
            try:
                return arrow.to_pylist()
            except ValueError as error:
                fact = f"column {name!r} holds values with two fields of one name"
                raise DataError(fact, found=str(arrow.type)[:200], fix="rename one of the fields") from error
        value = self._data[name]
        return [plain(value)] if self.is_row else column_cells(value)

    def numbers(self, name: str) -> np.ndarray:
        """The column as float64 `(n,)`; nulls become NaN."""
        arrow = self._arrow(name)
        if arrow is not None:
            kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
            if not any(is_kind(arrow.type) for is_kind in kinds):
                raise DataError(f"column {name!r} is {arrow.type}, not numbers", fix="name a score column")
            return np.asarray(arrow.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        try:
            return np.asarray([np.nan if v is None else v for v in self.cells(name)], dtype=np.float64).reshape(self.n)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {name!r} holds no plain numbers", fix="name a score column") from error

    def vectors(self, name: str) -> Ragged:
        """The vectors of each row, in the dtype they are stored in; zero-copy from Arrow.

        A row may hold several vectors or a single one; a null row has none.

        Raises:
            DataError: Vectors of different lengths, or values that are not numbers.
        """
        arrow = self._arrow(name)
        if arrow is not None:
            return arrow_vectors(arrow, name)
        value = self._data[name]
        cells = [value] if self.is_row else value
        try:
            rows = [_vectors_of(cell) for cell in cells]
        except (TypeError, ValueError) as error:
            raise DataError(f"column {name!r} holds no vectors of one length", fix=_EMBED_AGAIN) from error
        if len({row.shape[1] for row in rows if len(row)}) > 1:
            raise DataError(f"column {name!r} holds vectors of different lengths", fix=_EMBED_AGAIN)
        return Ragged.of(rows, np.empty((0, 0), np.float32))

    def ragged(self, name: str) -> Ragged:
        """A column of any number of plain numbers a row, in the dtype they are stored in."""
        arrow = self._arrow(name)
        if arrow is not None:
            return ragged_from_arrow(arrow)
        return Ragged.of([np.asarray(cell or (), np.float32) for cell in self.cells(name)])

    def spans(self) -> Ragged | None:
        """What was read of each row; None if there is no such column."""
        if SPANS not in self.names:
            return None
        try:
            arrow = self._arrow(SPANS)
            return spans_from_arrow(arrow) if arrow is not None else spans_of(self.cells(SPANS))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"column {SPANS!r} does not say what was read", fix=_EMBED_AGAIN) from error

    def _arrow(self, name: str) -> pa.ChunkedArray | None:
        if self._host == "table":
            column = self._data[name]
        elif self._host in ("lazy_batch", "lazy_row") and name in self._data.keys_to_format:
            column = self._data.pa_table[name]
        else:
            return None
        try:
            column.validate(full=True)  # a damaged or hostile file may name buffers that are longer than they are
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"column {name!r} is damaged", found=str(error)[:200], fix="make the file again") from error
        return column

    def emit(self, columns: Mapping[str, Column]) -> Any:
        """Hand `columns` (each with `n` as its first dimension) back in the form the host keeps exactly.

        float16 vectors become `fixed_size_list<halffloat>[d]` without `features=` being passed.
        """
        for name, values in columns.items():
            if len(values) != self.n:
                raise DataError(f"column {name!r} has {len(values)} values for {self.n} rows")
        if self._host == "batch":
            return {name: _cells(values) if isinstance(values, Ragged) else values for name, values in columns.items()}
        if self._host == "row":
            return {name: _cell(values) for name, values in columns.items()}
        arrays = {name: to_arrow(values) for name, values in columns.items()}
        if self._host == "lazy_row":
            return arrays
        if self._host == "lazy_batch":
            return _ArrowColumns(arrays)
        table = self._data
        for name, array in arrays.items():
            if name in table.column_names:
                table = table.drop_columns(name)
            table = table.append_column(name, array)
        return table


class _ArrowColumns(Mapping):
    """Arrow columns for `Dataset.map`, whose type check looks at `values()` and whose writer looks items up by key."""

    def __init__(self, arrays: Mapping[str, pa.Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> pa.Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def values(self) -> Any:
        return [np.empty(len(array)) for array in self._arrays.values()]


def _cells(values: Ragged) -> list[Any]:
    """The entries of each row, in a form that Arrow knows without being told."""
    rows = [values.row(index) for index in range(len(values))]
    return [_as_dicts(row) for row in rows] if values.values.dtype == SPAN else rows


def _cell(values: Column) -> Any:
    if isinstance(values, Ragged):
        return _cells(values)[0]
    return values[0] if values.ndim > 1 or values.dtype == object else values[0].item()


def _as_dicts(spans: np.ndarray) -> list[dict[str, Any]]:
    names = SPAN.names or ()
    return [dict(zip(names, span, strict=True)) for span in spans.tolist()]


def _vectors_of(cell: Any) -> np.ndarray:
    """The vectors of one cell, `(k, d)`: a list of vectors, one vector, or none."""
    if cell is None:
        return np.empty((0, 0), np.float32)
    if hasattr(cell, "detach"):
        cell = cell.detach().cpu()
    found = np.asarray(cell)
    if found.size == 0:
        return np.empty((0, 0), np.float32)
    if found.dtype == object:  # vectors of a pandas cell
        found = np.stack([np.asarray(vector) for vector in cell])
    if found.dtype.kind not in "fiu" or found.ndim not in (1, 2):
        raise TypeError(found.dtype)
    return found.reshape(-1, found.shape[-1])


def arrow_vectors(column: pa.ChunkedArray | pa.Array, name: str = "embeddings") -> Ragged:
    """The vectors of each row of an Arrow column, zero-copy where it is one chunk without nulls.

    Raises:
        DataError: The column holds no vectors, or vectors of different lengths.
    """
    inner = getattr(column.type, "value_type", None)
    depth, scalar = 0, column.type
    while _is_list(scalar):
        depth, scalar = depth + 1, scalar.value_type
    if depth not in (1, 2) or not (pa.types.is_floating(scalar) or pa.types.is_integer(scalar) or scalar == pa.null()):
        raise DataError(f"column {name!r} is {column.type}, not vectors", fix="name an embedding column")
    if depth == 1:
        return _single_vectors(column, name)
    if pa.types.is_fixed_size_list(inner):
        return ragged_from_arrow(column)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_or_nan(_single_vectors(chunk.flatten(), name)) for chunk in chunks]
    counts = [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
    filled = [part for part in parts if len(part)] or [np.empty((0, 0), np.float32)]
    if len({part.shape[1] for part in filled}) > 1:
        raise DataError(f"column {name!r} holds vectors of different lengths", fix=_EMBED_AGAIN)
    return Ragged(np.concatenate(filled), offsets_of(np.concatenate([np.empty(0, np.int64), *counts])))


def _or_nan(vectors: Ragged) -> np.ndarray:
    """One vector for each row, NaN where there is none."""
    if len(vectors.values) == len(vectors):
        return vectors.values
    whole = np.full((len(vectors), vectors.values.shape[1]), np.nan, vectors.values.dtype)
    whole[vectors.counts > 0] = vectors.values
    return whole


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _single_vectors(column: pa.ChunkedArray | pa.Array, name: str) -> Ragged:
    """One vector for each row, and none for a row that is null or empty."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    fixed = pa.types.is_fixed_size_list(column.type)
    parts, counts = [], [np.empty(0, np.int64)]
    for chunk in chunks:
        filled = chunk.is_valid().to_numpy(zero_copy_only=False)
        if not fixed:
            lengths = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            filled = lengths > 0
            if filled.any() and lengths[filled].min() != lengths.max():
                raise DataError(f"column {name!r} holds vectors of different lengths", fix=_EMBED_AGAIN)
        counts.append(filled.astype(np.int64))
        if filled.any():  # flatten(): it honours offsets and skips nulls
            parts.append(chunk.flatten().to_numpy(zero_copy_only=False).reshape(int(filled.sum()), -1))
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"column {name!r} holds vectors of different lengths", fix=_EMBED_AGAIN)
    width = column.type.list_size if fixed else 0
    values = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty((0, width), np.float16)
    return Ragged(values, offsets_of(np.concatenate(counts)))


def to_arrow(values: Column) -> pa.Array:
    """NumPy `(n,)` or `(n, d)`, or several entries a row -> Arrow of the same dtype (strings for text)."""
    if isinstance(values, Ragged):
        return spans_to_arrow(values) if values.values.dtype == SPAN else ragged_to_arrow(values)
    values = np.asarray(values)
    if values.ndim == 1:
        return pa.array(values, pa.string() if values.dtype.kind in "UO" else None)
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(to_arrow(flat), values.shape[1])


def _recognise(data: Any) -> tuple[str, Any]:
    if isinstance(data, pa.Table):
        return "table", data
    if isinstance(data, Mapping):
        if hasattr(data, "pa_table"):  # datasets' LazyRow and LazyBatch: Arrow underneath, read without Python lists
            return ("lazy_row" if type(data).__name__ == "LazyRow" else "lazy_batch"), data
        return ("row" if _is_row(data) else "batch"), data
    if type(data).__name__ == "DataFrame":
        if hasattr(data, "to_arrow"):  # polars
            return "table", data.to_arrow()
        return "table", pa.Table.from_pandas(data, preserve_index=False)
    raise DataError(
        f"a step was handed a {type(data).__name__}, not rows",
        fix="pass it to Dataset.map or filter without input_columns, or call it with a dict of columns",
    )


def _is_row(data: Mapping[str, Any]) -> bool:
    """Whether a dict is a row: it has a scalar somewhere, or turns where a batch has a list of texts or of turns."""
    return any(_is_single(name, value) for name, value in data.items()) or (
        not any(name in _OF_CELLS and _holds_cells(value) for name, value in data.items())
        and any(name in _OF_TURNS and _holds_turns(value) for name, value in data.items())
    )


_OF_TURNS = (SPOKEN - set(TEMPLATE_OPTIONS)) | {SPANS}
"""Columns whose cell may be a list of dicts."""

_OF_CELLS = SPOKEN - {"history", *TOOLS}
"""Columns whose cell is never a list of lists."""


def _is_single(name: str, value: Any) -> bool:
    """Whether a value can only be that of one row: a scalar, or one vector."""
    shape = getattr(value, "shape", None)
    if isinstance(value, (str, bytes, Mapping)) or (shape is None and not isinstance(value, Sequence)) or shape == ():
        return True
    first = value[0] if len(value) else None
    return name.startswith(EMBEDDING_PREFIX) and first is not None and np.ndim(first) == 0


def _holds_cells(value: Any) -> bool:
    """Whether a list holds what is a cell by itself: texts, lists of turns, or turns as structs of lists."""
    return any(
        isinstance(cell, (str, Sequence, np.ndarray)) or (isinstance(cell, Mapping) and _is_struct_of_lists(cell))
        for cell in value
    )


def _holds_turns(value: Any) -> bool:
    return len(value) > 0 and isinstance(value[0], Mapping) and not _is_struct_of_lists(value[0])


def _is_struct_of_lists(value: Mapping[str, Any]) -> bool:
    """Whether a dict is a whole conversation, as `datasets` once kept lists of dicts, and not a turn of one."""
    return all(not isinstance(inner, str) and isinstance(inner, (Sequence, np.ndarray)) for inner in value.values())
