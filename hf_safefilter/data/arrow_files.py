"""Arrow files of rows on disk: written whole or not at all, and opened memory-mapped.

What is derived from rows lies in a folder of this process's own, under names that it never looks up: a file that came
with the rows can stand beside them under any name that could be predicted, and would be taken for ours.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.errors import DataError
from hf_safefilter.storage.atomic import atomic_file
from hf_safefilter.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, NamedSplit

_numbers = count()


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

    path = new_file("stream")
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


def new_file(what: str) -> Path:
    """Path of a file that does not exist yet, in a folder that is deleted when this process ends."""
    return _scratch(os.getpid()) / f"{what}-{next(_numbers)}.arrow"


@cache
def _scratch(process: int) -> Path:
    # a forked child makes a folder of its own: it would give out the names that its parent gives out
    from datasets import config

    root = Path(config.HF_DATASETS_CACHE)
    root.mkdir(parents=True, exist_ok=True)
    borrowed = ExitStack()
    folder = borrowed.enter_context(scratch_folder(root))
    atexit.register(lambda: borrowed.close() if os.getpid() == process else None)
    return folder


def no_rows(schema: pa.Schema) -> pa.Table:
    """A table without rows; `Schema.empty_table` knows no extension types, as which turns of unlike keys are held."""
    return pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)
