"""The kept rows of a stream, written to parquet shards as they are read, a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from datasets import IterableDataset

_ROWS = 4096


def write_stream(folder: Path, split: str, rows: IterableDataset, without: list[str], shard_bytes: int) -> int:
    """Write the rows without the columns `without`, as ``<split>-<i>-of-<n>.parquet``; returns their number."""
    written = 0
    parts: list[Path] = []
    with ExitStack() as current:
        writer: pq.ParquetWriter | None = None
        filled = 0
        for table in _tables(rows, without):
            if writer is None or filled >= shard_bytes:
                current.close()
                parts.append(folder / f".{split}-{len(parts):05d}.parquet")
                writer, filled = current.enter_context(pq.ParquetWriter(parts[-1], table.schema)), 0
            writer.write_table(table)
            filled += table.nbytes
            written += table.num_rows
    for number, part in enumerate(parts):
        part.rename(folder / f"{split}-{number:05d}-of-{len(parts):05d}.parquet")
    return written


def _tables(rows: IterableDataset, without: list[str]) -> Iterator[pa.Table]:
    """The stream's own columns, with the types that it declares, or else those of its first table."""
    schema = None
    if rows.features is not None:
        from datasets import Features

        own = Features({name: kind for name, kind in rows.features.items() if name not in without})
        schema = own.arrow_schema
    for table in rows.with_format("arrow").iter(_ROWS):
        table = table.drop_columns([name for name in without if name in table.column_names])
        schema = schema or table.schema
        yield table.cast(schema)
