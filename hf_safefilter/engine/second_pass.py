"""The second reading of a stream: its rows again, with the scores they were given the first time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.batch import Batch
from hf_safefilter.columns import ROW_ID
from hf_safefilter.errors import DataError
from hf_safefilter.rows import conversations, row_id
from hf_safefilter.step import ROWS_PER_CALL

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from hf_safefilter.select import IsSafe


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """Adds to the rows of a stream the columns they were given before; for `map(with_indices=True)` on Arrow tables.

    Each row must be the one that was scored: its id is worked out again and compared.

    Args:
        scored: `row_id` and the new columns, a row for each row of the stream, in its order.
        names: the columns to add.
        columns: where prompt and response stand, for rows of no known shape.
    """

    scored: Dataset
    names: tuple[str, ...]
    columns: tuple[tuple[str, str], ...] | None = None

    def __call__(self, table: pa.Table, indices: Sequence[int]) -> pa.Table:
        """The table with the columns.

        Raises:
            DataError: these are not the rows that were scored.
        """
        if len(indices) and max(indices) >= len(self.scored):
            raise _another(max(indices))
        found = conversations(Batch(table), dict(self.columns) if self.columns else None)
        before = self.scored.with_format("arrow")[list(indices)]
        for place, now, then in zip(indices, found, before[ROW_ID].to_pylist(), strict=True):
            if row_id(now) != then:
                raise _another(place)
        for name in self.names:
            table = table.append_column(before.schema.field(name), before[name])
        return table


def kept_again(
    stream: IterableDataset,
    scored: Dataset,
    is_safe: IsSafe,
    names: Sequence[str],
    columns: Mapping[str, str] | None = None,
) -> IterableDataset:
    """The rows of `stream` that `is_safe` keeps, read again when they are asked for, with the columns `names`.

    Nothing is held or written. Rows are told by their places: iterate it in one process.
    """
    from datasets import Features

    pairs = tuple(sorted(dict(columns).items())) if columns else None
    features = None
    if stream.features is not None:
        features = Features({**stream.features, **{name: scored.features[name] for name in names}})
    again = stream.with_format("arrow").map(
        ReadAgain(scored, tuple(names), pairs),
        with_indices=True,
        batched=True,
        batch_size=ROWS_PER_CALL,
        features=features,
    )
    return again.filter(is_safe, batched=True, batch_size=ROWS_PER_CALL).with_format(None)


def _another(place: int) -> DataError:
    return DataError(
        f"row {place} of the stream is not the row that was scored there",
        fix="give a stream that reads the same rows in the same order each time, in one process",
    )
