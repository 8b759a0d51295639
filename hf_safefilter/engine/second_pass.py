"""The second reading of a stream: its rows again, those to keep, with the scores they were given the first time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations, row_id
from hf_safefilter.engine.ordered import Piece, cut
from hf_safefilter.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from hf_safefilter.decide.select import IsSafe


def kept_again(
    stream: IterableDataset,
    scored: Dataset,
    is_safe: IsSafe,
    names: Sequence[str],
    columns: Mapping[str, str] | None = None,
) -> IterableDataset:
    """The rows of `stream` that `is_safe` keeps, read again whenever they are asked for; nothing is held or written.

    Each row must be the one that was scored: its id is worked out again and compared, else reading ends in `DataError`.

    Args:
        stream: one that reads the same rows in the same order each time.
        scored: `row_id`, the score and `names`, a row for each row of the stream, in its order.
        is_safe: the decision.
        names: columns of `scored` to add.
        columns: where prompt and response stand, for rows of no known shape.
    """
    from datasets import DatasetInfo, Features, IterableDataset
    from datasets.iterable_dataset import ArrowExamplesIterable

    features = None
    if stream.features is not None:
        features = Features({**stream.features, **{name: scored.features[name] for name in names}})
    again = _Again(stream, scored, is_safe, tuple(names), dict(columns) if columns else None)
    # Not map and filter of the stream: where a filter leaves batches of unlike size, `datasets` 5.2 joins the keys of
    # its Arrow tables into ever longer ones, until memory is full.
    return IterableDataset(ArrowExamplesIterable(again.tables, {}), DatasetInfo(features=features), split=stream.split)


@dataclass(frozen=True, slots=True)
class _Again:
    stream: IterableDataset
    scored: Dataset
    is_safe: IsSafe
    names: tuple[str, ...]
    columns: dict[str, str] | None

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Place of a piece's first row, and its kept rows."""
        for piece in cut(self.stream):
            before = self.scored.with_format("arrow")[piece.start : piece.start + piece.table.num_rows]
            self._compare(piece, before[ROW_ID].to_pylist())
            table = piece.table
            for name in self.names:
                table = table.append_column(before.schema.field(name), before[name])
            table = table.filter(pa.array(self.is_safe.mask(Batch(before))))
            if table.num_rows:
                yield piece.start, table

    def _compare(self, piece: Piece, ids: list[str]) -> None:
        found = [row_id(one) for one in conversations(Batch(piece.table), self.columns)]
        if piece.last and piece.start + len(found) < len(self.scored):
            found.append("")  # the stream ends here, and did not the first time
            ids = [*ids, self.scored[piece.start + len(ids)][ROW_ID]]
        if found != ids:
            alike = next((at for at, (now, then) in enumerate(zip(found, ids, strict=False)) if now != then), len(ids))
            raise DataError(
                f"row {piece.start + alike} of the stream is not the row that was scored there",
                fix="give a stream that reads the same rows in the same order each time",
            )
