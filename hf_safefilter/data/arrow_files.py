"""Arrow files of rows on disk: written whole or not at all, and opened memory-mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.errors import DataError
from hf_safefilter.storage.atomic import atomic_file

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, NamedSplit


def materialise(stream: IterableDataset | IterableDatasetDict) -> Dataset | DatasetDict:
    """Write the rows of a stream to disk, a few thousand at a time, and open them memory-mapped.

    The file is deleted when this process ends.

    Raises:
        DataError: The stream holds no rows.
    """
    from datasets import DatasetDict, IterableDatasetDict

    if isinstance(stream, IterableDatasetDict):
        return DatasetDict({name: materialise(part) for name, part in stream.items()})
    return write_tables(stream.with_format("arrow").iter(1024), stream.split)


def write_tables(tables: Iterable[pa.Table], split: NamedSplit | None = None) -> Dataset:
    """Write tables with the same columns to disk as they arrive, and open them memory-mapped as one data set.

    The file is deleted when this process ends.

    Raises:
        DataError: There are no tables.
    """
    from datasets import Dataset

    tables = iter(tables)
    first = next(tables, None)
    if first is None:
        raise DataError("the stream holds no rows", fix="check its source and split")

    folder = scratch_folder()
    path = folder / f"stream-{len(list(folder.iterdir()))}.arrow"
    with arrow_file(path, first.schema) as write:
        write(first)
        for table in tables:
            write(table.cast(first.schema))
    return Dataset.from_file(str(path), split=split)


@contextmanager
def arrow_file(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A function that writes tables to an Arrow stream file, which is complete after the block or does not exist."""
    with (
        atomic_file(path) as scratch,
        pa.OSFile(str(scratch), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
    ):

        def write(table: pa.Table) -> None:
            if table.num_rows:
                writer.write_table(table.combine_chunks())

        yield write


def scratch_folder() -> Path:
    """A folder beside the caches of `datasets` that is deleted when this process ends."""
    return Path(_scratch().name)


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    from datasets import config

    root = Path(config.HF_DATASETS_CACHE)
    root.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="safefilter-", dir=root)
