"""Rows that hold several vectors each: a flat array of all of them, and where each row's begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """`n` rows with any number of entries each, in the layout of an Arrow list column.

    Attributes:
        values: All entries one after the other, `(m,)` or `(m, d)`.
        offsets: int64 `(n + 1,)`; the entries of row i are `values[offsets[i]:offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], like: np.ndarray | None = None) -> Ragged:
        """From the entries of each row; `like` gives width and dtype where there may be no row."""
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        parts = [row for row in rows if len(row)]
        if parts:
            values = np.concatenate(parts)
        else:
            values = np.empty((0,), np.float32) if like is None else like[:0]
        return cls(values, offsets_of(counts))

    @classmethod
    def one_each(cls, values: np.ndarray) -> Ragged:
        """One entry a row."""
        return cls(values, np.arange(len(values) + 1, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all `parts`, in order; there must be at least one part."""
        counts = np.concatenate([part.counts for part in parts])
        return cls(np.concatenate([part.values for part in parts]), offsets_of(counts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Entries of each row, int64 `(n,)`."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The row that each entry belongs to, int64 `(m,)`."""
        return np.repeat(np.arange(len(self)), self.counts)

    def row(self, index: int) -> np.ndarray:
        """The entries of one row, without a copy."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: np.ndarray) -> Ragged:
        """The given rows, in the given order."""
        counts = self.counts[rows]
        offsets = offsets_of(counts)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Ragged(self.values[np.repeat(self.offsets[:-1][rows], counts) + within], offsets)

    def where(self, chosen: np.ndarray) -> Ragged:
        """The same rows with the chosen entries alone; `chosen` is bool `(m,)`."""
        counts = np.bincount(self.owners[chosen], minlength=len(self))
        return Ragged(self.values[chosen], offsets_of(counts))

    def largest(self) -> tuple[np.ndarray, np.ndarray]:
        """The largest entry of each row, `(n,)`, and its place among the row's, int32 `(n,)`.

        Entries are numbers, `(m,)`, or vectors of one number, `(m, 1)`, as the row cache keeps scores.
        NaN and -1 for a row without entries, or with one that is NaN: what could not be scored whole has no score.
        Of equal entries the first counts.
        """
        values = self.values.reshape(len(self.values))
        top = np.full(len(self), np.nan, dtype=np.result_type(values, np.float32))
        place = np.full(len(self), -1, dtype=np.int32)
        filled = np.flatnonzero(self.counts)
        if len(filled):
            starts = self.offsets[:-1][filled]
            largest = np.maximum.reduceat(values, starts)  # NaN wins
            top[filled] = largest
            hit = values == np.repeat(largest, self.counts[filled])
            first = np.flatnonzero(hit)
            owners = self.owners[first]
            rows, at = np.unique(owners, return_index=True)
            place[rows] = first[at] - self.offsets[rows]
        return top, place


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Where rows of so many entries begin, and where the last one ends: int64 `(n + 1,)`."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ragged_to_arrow(rows: Ragged) -> pa.Array:
    """Arrow ``list<T>`` or ``list<fixed_size_list<T>[d]>`` of the same dtype, without a copy of the values."""
    values = np.ascontiguousarray(rows.values)
    inner: pa.Array
    if values.ndim == 1:
        inner = pa.array(values)
    else:
        inner = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.ListArray.from_arrays(pa.array(rows.offsets.astype(np.int32)), inner)


def ragged_from_arrow(column: pa.ChunkedArray | pa.Array) -> Ragged:
    """The rows of a list column, zero-copy where it is one chunk; a null row has no entries."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_from_chunk(chunk) for chunk in chunks if len(chunk)]
    if parts:
        width = max(part.values.shape[1] if part.values.ndim > 1 else 0 for part in parts)
        parts = [part if len(part.values) else _empty_like(part, width) for part in parts]
        return parts[0] if len(parts) == 1 else Ragged.joined(parts)
    inner = column.type.value_type
    if pa.types.is_fixed_size_list(inner):
        empty = np.empty((0, inner.list_size), inner.value_type.to_pandas_dtype())
    else:
        empty = np.empty(0, inner.to_pandas_dtype())
    return Ragged(empty, np.zeros(1, np.int64))


def _empty_like(part: Ragged, width: int) -> Ragged:
    return Ragged(np.empty((0, width), part.values.dtype) if width else part.values, part.offsets)


def _from_chunk(chunk: pa.Array) -> Ragged:
    inner = chunk.flatten()  # flatten(), not .values: it honours offsets and skips nulls
    counts = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(inner.type):
        flat = inner.flatten().to_numpy(zero_copy_only=False)
        values = flat.reshape(-1, inner.type.list_size)
        if inner.null_count:
            whole = np.full((len(inner), values.shape[1]), np.nan, values.dtype)
            whole[~inner.is_null().to_numpy(zero_copy_only=False)] = values
            values = whole
    else:
        values = inner.to_numpy(zero_copy_only=False)
    return Ragged(values, offsets_of(counts))
