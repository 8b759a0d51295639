"""Which rows are kept: the predicate, and the streamed split of a data set by it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_safefilter.data.arrow_files import arrow_file, scratch_folder
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.splits import joined, splits_of
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ROWS = 8192


@dataclass(frozen=True, slots=True)
class IsSafe:
    """Keeps a row whose score is finite and below the threshold; whatever could not be scored is dropped.

    Goes into `Dataset.filter`, batched or not, and into `DatasetDict.filter` and `IterableDataset.filter`.

    Args:
        column: a score column; higher = more dangerous.
        threshold: a finite number; rows at it are dropped.
        rule: how it was found, in words; taken from a `Threshold`.

    Raises:
        OptionError: a threshold that is not a finite number.
    """

    column: str
    threshold: float
    rule: str = ""
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float, np.floating)):
            raise OptionError(f"threshold {self.threshold!r} is not a number", fix="use threshold_for(...)")
        if not np.isfinite(self.threshold):
            raise OptionError(
                f"threshold {self.threshold} keeps everything, or nothing",
                fix="use a finite threshold: threshold_for(...)",
            )
        settle = object.__setattr__
        settle(self, "rule", self.rule or getattr(self.threshold, "rule", f"score below {float(self.threshold):.6g}"))
        settle(self, "threshold", float(self.threshold))

    def __call__(self, batch: Any) -> Any:
        """True for the rows to keep: a bool for a row, bool (n,) for a batch."""
        view = Batch(batch)
        kept = self.mask(view)
        return bool(kept[0]) if view.is_row else kept

    def mask(self, batch: Batch) -> np.ndarray:
        """bool (n,): True for the rows to keep."""
        batch.require(self.column, f"score the rows first: ds.map(...) with the step that adds {self.column!r}")
        scores = batch.numbers(self.column)
        return np.isfinite(scores) & (scores < self.threshold)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of a data set: every row is in one of them, in its old order."""

    kept: Dataset | DatasetDict
    dropped: Dataset | DatasetDict


def split(ds: Dataset | DatasetDict, is_safe: IsSafe) -> Split:
    """Split rows by a predicate into two flat data sets, streaming; `ds` is not changed.

    Unlike `filter`, which keeps an index into the old rows, the parts are written out once and then read at full
    speed. They lie beside the other cache files of `ds`, and the same split is not written twice.

    Raises:
        MissingError: the score column is missing.
    """
    parts = {name: _parts(part, is_safe) for name, part in splits_of(ds).items()}
    return Split(
        joined({name: kept for name, (kept, _) in parts.items()}),
        joined({name: dropped for name, (_, dropped) in parts.items()}),
    )


def _parts(ds: Dataset, is_safe: IsSafe) -> tuple[Dataset, Dataset]:
    """Kept and dropped rows; what is not there yet is written in one pass."""
    from datasets.fingerprint import Hasher

    Batch({name: [] for name in ds.column_names}).require(is_safe.column, "score the rows first")
    told = {keep: Hasher.hash(("split/1", ds._fingerprint, Hasher.hash(is_safe), keep)) for keep in (True, False)}
    paths = {keep: _folder(ds) / f"safefilter-{fingerprint}.arrow" for keep, fingerprint in told.items()}
    schema = ds.features.arrow_schema
    with ExitStack() as files:
        writers = {k: files.enter_context(arrow_file(path, schema)) for k, path in paths.items() if not path.exists()}
        for table in _tables(ds) if writers else ():
            mask = is_safe.mask(Batch(table))
            for keep, write in writers.items():
                write(table.filter(pa.array(mask == keep)))
    return _open(paths[True], ds, told[True]), _open(paths[False], ds, told[False])


def _tables(ds: Dataset) -> Iterable[pa.Table]:
    if ds._indices is None:  # flat already: Arrow's own batches, without a copy
        yield from (pa.Table.from_batches([batch]) for batch in ds.data.table.to_batches(_ROWS))
    else:
        yield from ds.with_format("arrow").iter(_ROWS)


def _open(path: Path, like: Dataset, fingerprint: str) -> Dataset:
    from datasets import Dataset

    opened = Dataset.from_file(str(path), info=like.info.copy(), split=like.split)
    opened._fingerprint = fingerprint
    return opened


def _folder(ds: Dataset) -> Path:
    """Beside the data set's own cache files; for one in memory, in a folder that goes when this process ends."""
    if ds.cache_files:
        return Path(ds.cache_files[0]["filename"]).parent
    return scratch_folder()
