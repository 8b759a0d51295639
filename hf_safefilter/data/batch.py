"""What a step is handed, and how it hands columns back: one view over every host.

`Dataset.map` (batched or row by row), `IterableDataset.map`, Arrow-formatted data sets, Ray Data's `map_batches` and a
plain dict all pass something else. A `Batch` makes them alike: n rows, columns by name, embeddings as NumPy without a
detour through Python lists. `emit` gives each host the form in which it keeps fixed sizes and dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.errors import DataError, MissingError

_GAP = np.empty(0, np.float32)
_MESSAGE_COLUMNS = frozenset({"messages", "conversations", "prompt", "completion", "chosen", "rejected"})


class Batch:
    """`n` rows of a data set, whatever the host passed them as."""

    __slots__ = ("_data", "_host", "n", "names")

    def __init__(self, data: Any) -> None:
        self._host, self._data = _recognise(data)
        self.names: list[str] = list(data.column_names) if isinstance(data, pa.Table) else list(data)
        self.n: int = self._count(data)

    def _count(self, data: Any) -> int:
        if self._host in ("row", "lazy_row"):
            return 1
        if self._host == "table":
            return data.num_rows
        if self._host == "lazy_batch":
            return data.pa_table.num_rows
        return len(next(iter(data.values()))) if len(data) else 0

    @property
    def is_row(self) -> bool:
        """Whether the host passed a single row, and wants single values back."""
        return self._host in ("row", "lazy_row")

    def require(self, name: str, fix: str) -> None:
        """Raise `MissingError` with the columns that are there unless `name` is one of them."""
        if name not in self.names:
            raise MissingError(f"column {name!r} is missing", found=", ".join(self.names) or "no columns", fix=fix)

    def cells(self, name: str) -> list[Any]:
        """The column as a list of `n` Python values (text, messages; not for embeddings)."""
        if self._host == "table":
            return self._data[name].to_pylist()
        value = self._data[name]
        if self._host in ("row", "lazy_row"):
            return [value]
        return value.tolist() if isinstance(value, np.ndarray) else list(value)

    def numbers(self, name: str) -> np.ndarray:
        """The column as float64 `(n,)`; nulls become NaN."""
        arrow = self._arrow(name)
        if arrow is not None:
            if not (pa.types.is_integer(arrow.type) or pa.types.is_floating(arrow.type)):
                raise DataError(f"column {name!r} is {arrow.type}, not numbers", fix="name a score column")
            return np.asarray(arrow.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        try:
            return np.asarray([np.nan if v is None else v for v in self.cells(name)], dtype=np.float64).reshape(self.n)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {name!r} holds no plain numbers", fix="name a score column") from error

    def vectors(self, name: str) -> np.ndarray:
        """The column as `(n, d)` in the dtype it is stored in; zero-copy from Arrow; null rows become NaN.

        Raises:
            DataError: rows of different lengths, or values that are not numbers.
        """
        arrow = self._arrow(name)
        if arrow is not None:
            return arrow_vectors(arrow, name)
        value = self._data[name]
        try:
            cells: Any = [value] if self._host in ("row", "lazy_row") else value
            if not isinstance(cells, np.ndarray) or cells.dtype == object:
                cells = [_GAP if cell is None else np.asarray(cell) for cell in cells]
                width = max((len(cell) for cell in cells), default=0)
                cells = [np.full(width, np.nan, np.float32) if cell is _GAP else cell for cell in cells]
            found = np.stack(cells) if len(cells) else np.empty((0, 0), np.float32)
            if found.dtype.kind not in "fiu":
                raise TypeError(found.dtype)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {name!r} holds no vectors of one length", fix="embed the rows again") from error
        if found.ndim != 2:
            raise DataError(f"column {name!r} holds {found.ndim}-d cells, not vectors", fix="embed the rows again")
        return found

    def _arrow(self, name: str) -> pa.ChunkedArray | None:
        if self._host == "table":
            return self._data[name]
        if self._host in ("lazy_batch", "lazy_row") and name in self._data.keys_to_format:
            return self._data.pa_table[name]
        return None

    def emit(self, columns: Mapping[str, np.ndarray]) -> Any:
        """Hand `columns` (each with `n` as its first dimension) back in the form the host keeps exactly.

        NumPy float16 of shape (n, d) becomes `fixed_size_list<halffloat>[d]` without `features=` being passed.
        """
        for name, values in columns.items():
            if len(values) != self.n:
                raise DataError(f"column {name!r} has {len(values)} values for {self.n} rows")
        if self._host == "batch":
            return dict(columns)
        if self._host == "row":
            return {name: _cell(values) for name, values in columns.items()}
        arrays = {name: to_arrow(values) for name, values in columns.items()}
        if self._host == "lazy_row":
            return arrays
        if self._host == "lazy_batch":
            return _ArrowColumns(arrays, columns)
        table = self._data
        for name, array in arrays.items():
            if name in table.column_names:
                table = table.drop_columns(name)
            table = table.append_column(name, array)
        return table


class _ArrowColumns(Mapping):
    """Arrow columns for `Dataset.map`, whose type check looks at `values()` and whose writer looks items up by key."""

    def __init__(self, arrays: Mapping[str, pa.Array], columns: Mapping[str, np.ndarray]) -> None:
        self._arrays, self._columns = arrays, columns

    def __getitem__(self, name: str) -> pa.Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def values(self) -> Any:
        return self._columns.values()


def _cell(values: np.ndarray) -> Any:
    return values[0] if values.ndim > 1 or values.dtype == object else values[0].item()


def arrow_vectors(column: pa.ChunkedArray | pa.Array, name: str = "embeddings") -> np.ndarray:
    """Arrow list column -> `(n, d)` NumPy, zero-copy where it is one fixed-size chunk without nulls."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_vectors(chunk, name) for chunk in chunks if len(chunk)]
    if not parts:
        width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 0
        return np.empty((0, width), np.float16)
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"column {name!r} holds vectors of different lengths", fix="embed the rows again")
    return np.concatenate(parts)


def _chunk_vectors(chunk: pa.Array, name: str) -> np.ndarray:
    kind = chunk.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError(f"column {name!r} is {kind}, not vectors", fix="name an embedding column")
    flat = chunk.flatten().to_numpy(zero_copy_only=False)  # flatten(), not .values: it honours offsets and skips nulls
    present = len(chunk) - chunk.null_count
    if present == 0:
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        return np.full((len(chunk), width), np.nan, np.float32)
    if not pa.types.is_fixed_size_list(kind):
        lengths = chunk.value_lengths().drop_null().to_numpy()
        if lengths.min() != lengths.max():
            raise DataError(f"column {name!r} holds vectors of different lengths", fix="embed the rows again")
    vectors = flat.reshape(present, -1)
    if chunk.null_count:
        whole = np.full((len(chunk), vectors.shape[1]), np.nan, vectors.dtype)
        whole[~chunk.is_null().to_numpy(zero_copy_only=False)] = vectors
        return whole
    return vectors


def to_arrow(values: np.ndarray) -> pa.Array:
    """NumPy `(n,)` or `(n, d)` -> Arrow array or fixed-size list array of the same dtype (strings for text)."""
    values = np.asarray(values)
    if values.ndim == 1:
        return pa.array(values, pa.string() if values.dtype.kind in "UO" else None)
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(to_arrow(flat), values.shape[1])


def _recognise(data: Any) -> tuple[str, Any]:
    if isinstance(data, pa.Table):
        return "table", data
    if not isinstance(data, Mapping):
        raise DataError(
            f"a step was handed a {type(data).__name__}, not rows",
            fix="pass it to Dataset.map or filter, or call it with a dict of columns",
        )
    if hasattr(data, "pa_table"):  # datasets' LazyRow and LazyBatch: Arrow underneath, read without Python lists
        return ("lazy_row" if type(data).__name__ == "LazyRow" else "lazy_batch"), data
    return ("row" if _is_row(data) else "batch"), data


def _is_row(data: Mapping[str, Any]) -> bool:
    """A batch has a sequence in every column; a row has a scalar somewhere, or one bare vector or conversation."""
    for name, value in data.items():
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
            return True
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return True
        first = value[0] if len(value) else None
        if name.startswith(EMBEDDING_PREFIX) and np.isscalar(first):
            return True
        if name in _MESSAGE_COLUMNS and isinstance(first, Mapping):
            return True
    return False
