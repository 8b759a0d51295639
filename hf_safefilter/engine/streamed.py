"""A stream too large to be stored: an engine scores it once, and its rows are read again only when they are needed.

Between the two readings only small columns of a row are stored: its id, its scores, why it could not be read, and the
columns by which rows are counted (labels, source, category).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_safefilter.columns import EMBEDDING_PREFIX, score_column
from hf_safefilter.data.splits import column_names, joined, require_free, splits_of
from hf_safefilter.engine.second_pass import reread_kept

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.engine import Engine, NewColumns
    from hf_safefilter.step import Step

_COUNTED_BY = ("source", "category")


@dataclass(frozen=True, slots=True)
class StreamedScores:
    """A stream, and the columns that an engine has computed for its rows.

    Attributes:
        rows: The stream.
        by_split: Split -> its new columns, in the order of the splits; "" where there are no splits.
        columns: Which columns hold prompt and response, for rows of no known shape.
    """

    rows: IterableDataset | IterableDatasetDict
    by_split: Mapping[str, NewColumns]
    columns: Mapping[str, str] | None

    @property
    def scored(self) -> Dataset | DatasetDict:
        """Ids, scores, reasons and the columns by which rows are counted: no text and no vectors."""
        return joined({name: new.rows for name, new in self.by_split.items()})

    def kept(
        self, scored: Dataset | DatasetDict, is_safe: IsSafe, steps: Sequence[Step]
    ) -> IterableDataset | IterableDatasetDict:
        """A stream that reads the rows to keep again, with the columns of `steps` except vectors."""
        from datasets import IterableDatasetDict

        if isinstance(scored, Mapping):
            parts = {name: (self.rows[name], part) for name, part in scored.items()}
            return IterableDatasetDict(
                {name: self._kept(rows, part, is_safe, steps) for name, (rows, part) in parts.items()}
            )
        return self._kept(self.rows, scored, is_safe, steps)

    def _kept(self, rows: IterableDataset, scored: Dataset, is_safe: IsSafe, steps: Sequence[Step]) -> IterableDataset:
        names = [name for step in steps for name in step.produces() if name in scored.column_names]
        return reread_kept(rows, scored, is_safe, names, self.columns)

    def samples(self) -> list[tuple[Dataset, list[int]]]:
        """A few rows of each split as they were read, with their indices among the rows of all splits."""
        start, samples = 0, []
        for new in self.by_split.values():
            samples.append((new.sample, [start + index for index in new.indices]))
            start += len(new.rows)
        return samples


def score_stream(
    engine: Engine,
    rows: IterableDataset | IterableDatasetDict,
    steps: Sequence[Step],
    *,
    labels: Iterable[str | None] = (),
    columns: Mapping[str, str] | None = None,
) -> StreamedScores:
    """Run `steps` on a stream, and the controls, which could not be computed later without the text.

    Args:
        engine: Where the steps run.
        rows: The stream; each split is scored separately.
        steps: The steps of the recipe.
        labels: Names of columns that the decision needs; None is ignored.
        columns: Which columns hold prompt and response, for rows of no known shape.

    Raises:
        DataError: The rows already have a column with the name of a new one.
    """
    from hf_safefilter.scores import CONTROLS, make

    produced = {name for step in steps for name in step.produces()}
    controls = [make(name, columns=columns) for name in CONTROLS if score_column(name) not in produced]
    all_steps = [*steps, *controls]
    new = [name for step in all_steps for name in step.produces()]
    small = [name for name in new if not name.startswith(EMBEDDING_PREFIX)]
    wanted = dict.fromkeys(name for name in (*labels, *_COUNTED_BY) if name is not None)
    by_split = {}
    for split, part in splits_of(rows).items():
        own = column_names(part)
        require_free(part, new)
        by_split[split] = engine.columns(part, all_steps, [*small, *(name for name in wanted if name in own)])
    return StreamedScores(rows, by_split, columns)
