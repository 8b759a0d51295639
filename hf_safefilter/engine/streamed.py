"""A stream too large to be held: scored by an engine once, its rows read again only when they are wanted.

Between the two readings nothing is kept of a row but its id, its scores, why it could not be read, and the few small
columns that are counted by (labels, source, category).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_safefilter.columns import EMBEDDING_PREFIX, score_column
from hf_safefilter.data.splits import column_names, joined, require_free, splits_of
from hf_safefilter.engine.second_pass import kept_again

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.engine import Engine, NewColumns
    from hf_safefilter.step import Step

_COUNTED_BY = ("source", "category")


@dataclass(frozen=True, slots=True)
class StreamedScores:
    """A stream, and what an engine found out about its rows.

    Attributes:
        rows: the stream.
        found: by split, in its order; "" where there are no splits.
        columns: where prompt and response stand, for rows of no known shape.
    """

    rows: IterableDataset | IterableDatasetDict
    found: Mapping[str, NewColumns]
    columns: Mapping[str, str] | None

    @property
    def scored(self) -> Dataset | DatasetDict:
        """Ids, scores, reasons and columns to count by: no text and no vectors."""
        return joined({name: one.rows for name, one in self.found.items()})

    def kept(
        self, scored: Dataset | DatasetDict, is_safe: IsSafe, steps: Sequence[Step]
    ) -> IterableDataset | IterableDatasetDict:
        """The rows to keep with the columns of `steps`, but for vectors: a stream, which reads them again."""
        from datasets import IterableDatasetDict

        if isinstance(scored, Mapping):
            parts = {name: (self.rows[name], part) for name, part in scored.items()}
            return IterableDatasetDict(
                {name: self._kept(rows, part, is_safe, steps) for name, (rows, part) in parts.items()}
            )
        return self._kept(self.rows, scored, is_safe, steps)

    def _kept(self, rows: IterableDataset, scored: Dataset, is_safe: IsSafe, steps: Sequence[Step]) -> IterableDataset:
        names = [name for step in steps for name in step.produces() if name in scored.column_names]
        return kept_again(rows, scored, is_safe, names, self.columns)

    def witnesses(self) -> list[tuple[Dataset, list[int]]]:
        """A few rows of each split as they were read, with their places among all rows."""
        before, rows = 0, []
        for one in self.found.values():
            rows.append((one.sample, [before + place for place in one.places]))
            before += len(one.rows)
        return rows


def score_stream(
    engine: Engine,
    rows: IterableDataset | IterableDatasetDict,
    steps: Sequence[Step],
    *,
    labels: Iterable[str | None] = (),
    columns: Mapping[str, str] | None = None,
) -> StreamedScores:
    """Carry out `steps` on a stream, and the controls, which could not be computed later without the text.

    Args:
        engine: where.
        rows: the stream; each split on its own.
        steps: of the recipe.
        labels: columns that are needed for the decision.
        columns: where prompt and response stand, for rows of no known shape.

    Raises:
        DataError: the rows have a column of a name that a step uses.
    """
    from hf_safefilter.scores import CONTROLS, make

    there = {name for step in steps for name in step.produces()}
    controls = [make(name, columns=columns) for name in CONTROLS if score_column(name) not in there]
    every = [*steps, *controls]
    new = [name for step in every for name in step.produces()]
    bring = [name for name in new if not name.startswith(EMBEDDING_PREFIX)]
    wanted = [name for name in (*labels, *_COUNTED_BY) if name is not None]
    splits = splits_of(rows)
    found = {}
    for name, part in splits.items():
        own = column_names(part)
        require_free(part, new)
        found[name] = engine.columns(part, every, [*bring, *dict.fromkeys(one for one in wanted if one in own)])
    return StreamedScores(rows, found, columns)
