"""The second reading of a stream: the rows to keep, with the scores from the first reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.arrow_files import no_rows
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.engine.ordered import Piece, cut
from hf_safefilter.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

    from hf_safefilter.decide.select import IsSafe


def reread_kept(
    stream: IterableDataset,
    scored: Dataset,
    is_safe: IsSafe,
    names: Sequence[str],
    columns: Mapping[str, str] | None = None,
) -> IterableDataset:
    """The rows of `stream` that `is_safe` keeps, which are read again whenever they are asked for, and never stored.

    The id of each row is computed again and compared with that of the scored row; if they differ, `DataError` is
    raised.

    Args:
        stream: A stream that reads the same rows in the same order each time.
        scored: `row_id`, the score and `names`, with one row for each row of the stream, in its order.
        is_safe: The decision.
        names: Columns of `scored` to add.
        columns: Which columns hold prompt and response, for rows of no known shape.
    """
    from datasets import DatasetInfo, Features, IterableDataset
    from datasets.iterable_dataset import ArrowExamplesIterable

    features = None
    if stream.features is not None:
        features = _features_of_kept(stream.features, scored, is_safe)
        features = Features({**features, **{name: scored.features[name] for name in names}})
    second_pass = _SecondPass(stream, scored, is_safe, tuple(names), dict(columns) if columns else None)
    # Not the map and filter of the stream: where a filter leaves batches of different sizes, `datasets` 5.2 joins the
    # keys of its Arrow tables into ever longer ones, until memory is full.
    return IterableDataset(
        ArrowExamplesIterable(second_pass.tables, {}), DatasetInfo(features=features), split=stream.split
    )


def _features_of_kept(features: Features, scored: Dataset, is_safe: IsSafe) -> Features:
    """Those of the rows that are kept, which may have more than the stream's: the weight of a turn."""
    from datasets import Features

    schema = features.arrow_schema
    changed = is_safe.divide(no_rows(schema), no_rows(scored.features.arrow_schema))[0].schema
    return features if changed == schema else Features.from_arrow_schema(changed)


@dataclass(frozen=True, slots=True)
class _SecondPass:
    stream: IterableDataset
    scored: Dataset
    is_safe: IsSafe
    names: tuple[str, ...]
    columns: dict[str, str] | None

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Index of the first row of each piece, and the rows of the piece that are kept."""
        for piece in cut(self.stream):
            scored = self.scored.with_format("arrow")[piece.start : piece.start + piece.table.num_rows]
            self._require_scored_rows(piece, scored[ROW_ID].to_pylist())
            table, kept = self.is_safe.divide(piece.table, scored)
            for name in self.names:
                table = table.append_column(scored.schema.field(name), scored[name])
            table = table.filter(pa.array(kept))
            if table.num_rows:
                yield piece.start, table

    def _require_scored_rows(self, piece: Piece, scored_ids: list[str]) -> None:
        """Raise unless the rows of the piece are those with the `scored_ids`."""
        ids = [row_id(conversation) for conversation in conversations(Batch(piece.table), self.columns)]
        if piece.last and piece.start + len(ids) < len(self.scored):
            ids.append("")  # the stream ends here, but did not in the first reading
            scored_ids = [*scored_ids, self.scored[piece.start + len(scored_ids)][ROW_ID]]
        if ids != scored_ids:
            pairs = enumerate(zip(ids, scored_ids, strict=False))
            first = next((index for index, (row, scored) in pairs if row != scored), len(scored_ids))
            raise DataError(
                f"row {piece.start + first} of the stream is not the row that was scored",
                fix="pass a stream that reads the same rows in the same order each time",
            )
