"""The rows that a score is fitted to, as Arrow record batches: a few at a time, never through Python lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.errors import MissingError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

ROWS_PER_BATCH = 4096


def record_batches(
    ds: Dataset | DatasetDict | IterableDataset, columns: Sequence[str], *, fix: str
) -> Iterator[pa.Table]:
    """Tables of `columns`, all splits one after the other; a filtered or shuffled data set gives its own rows.

    Raises:
        MissingError: a split lacks a column; `fix` says how to make it.
    """
    for part in ds.values() if isinstance(ds, Mapping) else [ds]:
        there = part.column_names
        for column in columns:
            if there is not None and column not in there:
                raise MissingError(f"column {column!r} is missing", found=", ".join(there), fix=fix)
        yield from part.select_columns(list(columns)).with_format("arrow").iter(ROWS_PER_BATCH)
