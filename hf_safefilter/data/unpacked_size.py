"""How much a parquet or Arrow file unpacks to, found out before all of it stands in memory or on the disk.

A dictionary and a codec make gigabytes of equal cells into kilobytes, and no number in the file tells how many: it is
unpacked a few rows at a time, and forgotten, up to a limit. That takes a few seconds a gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_safefilter.errors import DataError

SMALL = 2 << 30
"""Bytes that may come out of however small a file."""

MOST = 200
"""Times a file's size that may come out of a larger one; text is seldom made smaller by more than 20."""

_ROWS = 64


def require_modest(path: Path, kind: str) -> None:
    """Raise if a file unpacks to far more than its size.

    Args:
        path: The file.
        kind: "parquet" or "arrow"; files of other kinds are as large as what is in them.

    Raises:
        DataError: It does.
        pyarrow.ArrowException: It is damaged: a length, an offset or a text in it cannot be right.
    """
    limit = max(SMALL, MOST * path.stat().st_size)
    total = 0
    for batch in _BATCHES[kind](path) if kind in _BATCHES else ():
        batch.validate(full=True)  # Arrow itself reads beyond a buffer that a damaged file calls longer than it is
        total += batch.nbytes
        if total > limit:
            raise DataError(
                f"{path.name} unpacks to more than {limit / 1e9:.2f} GB, {MOST} times its size or more",
                fix="write it again in smaller files, or uncompressed, if that is right",
            )


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS, use_threads=False)


def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            yield from pa.ipc.open_stream(source)
        except pa.ArrowInvalid:  # the other of the two formats
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(at) for at in range(file.num_record_batches))


_BATCHES = {"parquet": _parquet, "arrow": _arrow}
