"""Which rows are kept: the predicate, and the streamed split of a data set by it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_safefilter.checks import is_finite
from hf_safefilter.data.arrow_files import arrow_file, scratch_folder
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.splits import joined, splits_of
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ROWS = 8192


@dataclass(frozen=True, slots=True)
class IsSafe:
    """Keeps a row whose score is finite and below the threshold; a row that could not be scored is dropped.

    It can be passed to `Dataset.filter`, batched or not, `DatasetDict.filter` and `IterableDataset.filter`.

    Args:
        column: Name of a score column; higher = more dangerous.
        threshold: A finite number; rows that score it or more are dropped.
        rule: How the threshold was found, in words; a `Threshold` states it itself.

    Raises:
        OptionError: The threshold is not a finite number.
    """

    column: str
    threshold: float
    rule: str = ""
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not is_finite(self.threshold):
            raise OptionError(
                f"`threshold={self.threshold!r}` is not a finite number", fix="find one with threshold_for(...)"
            )
        set_field = object.__setattr__
        rule = getattr(self.threshold, "rule", f"score below {float(self.threshold):.6g}")
        set_field(self, "rule", self.rule or rule)
        set_field(self, "threshold", float(self.threshold))

    def __call__(self, batch: Any) -> Any:
        """True for the rows to keep: a bool for a single row, bool (n,) for a batch."""
        view = Batch(batch)
        mask = self.mask(view)
        return bool(mask[0]) if view.is_row else mask

    def mask(self, batch: Batch) -> np.ndarray:
        """bool (n,): True for the rows to keep."""
        batch.require(self.column, f"score the rows first: ds.map(...) with the step that adds {self.column!r}")
        scores = batch.numbers(self.column)
        return np.isfinite(scores) & (scores < self.threshold)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of a data set: every row is in one of them, in the order of the data set."""

    kept: Dataset | DatasetDict
    dropped: Dataset | DatasetDict


def split(ds: Dataset | DatasetDict, is_safe: IsSafe) -> Split:
    """Split rows by a predicate into two flat data sets, streaming; `ds` is not changed.

    Unlike `filter`, which stores indices into the rows of `ds`, the parts are written to disk once and then read at
    full speed. They are stored beside the other cache files of `ds`, and the same split is not written twice.

    Raises:
        MissingError: The score column is missing.
    """
    parts = {name: _parts(part, is_safe) for name, part in splits_of(ds).items()}
    return Split(
        joined({name: kept for name, (kept, _) in parts.items()}),
        joined({name: dropped for name, (_, dropped) in parts.items()}),
    )


def _parts(ds: Dataset, is_safe: IsSafe) -> tuple[Dataset, Dataset]:
    """Kept and dropped rows; the parts that do not exist yet are written in one pass."""
    from datasets.fingerprint import Hasher

    Batch({name: [] for name in ds.column_names}).require(is_safe.column, "score the rows first")
    prints = {keep: Hasher.hash(("split/1", ds._fingerprint, Hasher.hash(is_safe), keep)) for keep in (True, False)}
    paths = {keep: _folder(ds) / f"safefilter-{fingerprint}.arrow" for keep, fingerprint in prints.items()}
    schema = ds.features.arrow_schema
    with ExitStack() as files:
        writers = {k: files.enter_context(arrow_file(path, schema)) for k, path in paths.items() if not path.exists()}
        for table in _tables(ds) if writers else ():
            mask = is_safe.mask(Batch(table))
            for keep, write in writers.items():
                write(table.filter(pa.array(mask == keep)))
    return _open(paths[True], ds, prints[True]), _open(paths[False], ds, prints[False])


def _tables(ds: Dataset) -> Iterable[pa.Table]:
    if ds._indices is None:  # rows in the order of the files: Arrow's own batches, without a copy
        yield from (pa.Table.from_batches([batch]) for batch in ds.data.table.to_batches(_ROWS))
    else:
        yield from ds.with_format("arrow").iter(_ROWS)


def _open(path: Path, like: Dataset, fingerprint: str) -> Dataset:
    from datasets import Dataset

    part = Dataset.from_file(str(path), info=like.info.copy(), split=like.split)
    part._fingerprint = fingerprint
    return part


def _folder(ds: Dataset) -> Path:
    """The folder of the data set's cache files; for one in memory, a folder that is deleted when this process ends."""
    if ds.cache_files:
        return Path(ds.cache_files[0]["filename"]).parent
    return scratch_folder()
