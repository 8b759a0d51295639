"""The kept rows that were written, compared cell by cell with the rows that the decision keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.errors import PublishError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.decide.select import IsSafe

_ROWS = 8192


def require_source_rows(
    files: Iterable[Path], scored: Dataset, is_safe: IsSafe, without: Collection[str], added: Dataset | None = None
) -> None:
    """Raise unless the files hold, in order, the rows of a split that the decision keeps, those added, and no other.

    Columns of files (images, sounds), which are written in another form, are not compared.

    Args:
        files: The parquet files of the split, in order.
        scored: All rows of the split, with text and score.
        is_safe: The decision; it is made anew.
        without: Columns that are not written.
        added: Rows that were added at the end.

    Raises:
        PublishError: A row is missing, was added, or holds something else.
    """
    from datasets.features.features import require_storage_embed

    own = [name for name in scored.column_names if name not in without]
    names = [name for name in own if not require_storage_embed(scored.features[name])]
    decides = [name for name in scored.column_names if name in without and not name.startswith(EMBEDDING_PREFIX)]
    written = _Rows(batch for file in files for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=names))
    start = 0
    for table in scored.select_columns([*names, *decides]).with_format("arrow").iter(_ROWS):
        changed, kept = is_safe.divide(table)
        expected = changed.filter(pa.array(kept)).select(names)
        if not _equal(expected, written.next(expected.num_rows)):
            raise _other_rows(f"among the kept ones of rows {start} to {start + table.num_rows - 1}")
        start += table.num_rows
    if added is not None and not _equal(added.with_format("arrow")[:].select(names), written.next(len(added))):
        raise _other_rows("those that were added at the end are others")
    if written.next(1) is not None:
        raise _other_rows("rows were added at the end")


class _Rows:
    """Rows of record batches, taken as many at a time as asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._left: list[pa.RecordBatch] = []

    def next(self, count: int) -> pa.Table | None:
        """The next `count` rows, or as many as are left; None if there are none."""
        while sum(batch.num_rows for batch in self._left) < count and (batch := next(self._batches, None)) is not None:
            self._left.append(batch)
        if not count or not self._left:
            return None
        table = pa.Table.from_batches(self._left)
        self._left = table.slice(count).to_batches()
        return table.slice(0, count)


def _equal(expected: pa.Table, written: pa.Table | None) -> bool:
    if written is None or not expected.num_rows:
        return not expected.num_rows
    if expected.num_rows != written.num_rows or expected.column_names != written.column_names:
        return False
    # Arrow holds NaN to differ from itself, and two types that hold the same values to differ
    return expected.equals(written) or repr(expected.to_pylist()) == repr(written.to_pylist())


def _other_rows(found: str) -> PublishError:
    return PublishError(
        "the rows that were written are not those of the source that the decision keeps",
        found=found,
        fix="run it again; if it happens again, something else writes to the caches of this user",
    )
