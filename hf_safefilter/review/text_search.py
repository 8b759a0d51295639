"""Which rows hold some words: Arrow looks through all their texts, at any depth, without making Python values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_safefilter.columns import EMBEDDING_PREFIX, READ_AS, SPANS, UNSCORABLE

if TYPE_CHECKING:
    from datasets import Dataset

_NOT_SAID = (READ_AS, SPANS, UNSCORABLE)
_BATCH = 16384


def rows_with(parts: Sequence[Dataset], words: str) -> np.ndarray:
    """Indices of the rows, counted through all parts, in one of whose texts `words` stand, in upper or lower case."""
    found = []
    for part in parts:
        names = [name for name in part.column_names if name not in _NOT_SAID and not name.startswith(EMBEDDING_PREFIX)]
        hits = [np.empty(0, bool)]
        for table in part.select_columns(names).with_format("arrow").iter(_BATCH):
            batch = np.zeros(len(table), bool)
            for column in table.columns:
                for offset, chunk in _chunks(column):
                    batch[offset : offset + len(chunk)] |= _holds(chunk, words)
            hits.append(batch)
        found.append(np.concatenate(hits))
    return np.flatnonzero(np.concatenate(found))


def _chunks(column: pa.ChunkedArray) -> list[tuple[int, pa.Array]]:
    ends = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
    return list(zip(ends[:-1].tolist(), column.chunks, strict=True))


def _holds(array: pa.Array, words: str) -> np.ndarray:
    """For each entry whether a text in it holds the words, bool (n,)."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = pc.match_substring(array, words, ignore_case=True).fill_null(False)
        return np.asarray(found.to_numpy(zero_copy_only=False), bool)
    hits = np.zeros(len(array), bool)
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            hits |= _holds(pc.struct_field(array, [index]), words)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if not _has_text(kind):
            return hits
        inner = _holds(pc.list_flatten(array), words)
        hits[np.asarray(pc.list_parent_indices(array))[inner]] = True
    return hits


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_text(field.type) for field in kind)
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
