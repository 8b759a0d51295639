"""Scored rows as a reviewer needs them: numbers of all rows in memory, what a row says one row at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import READ_AS, ROW_ID, SPANS, UNSCORABLE, span_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.shapes import SPOKEN
from hf_safefilter.data.splits import column_names, parts_of, splits_of
from hf_safefilter.decide.explanations import deciding_scores
from hf_safefilter.decide.thresholds import numbers_of
from hf_safefilter.errors.redaction import shown
from hf_safefilter.pipeline.stored_decision import DECIDING
from hf_safefilter.publish.drop_reasons import row_ids

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.saved.saved_rows import Saved

SPLIT, TURN = "split", "deciding turn"
UNKNOWN = -1

_MOST_VALUES, _LONGEST_NAME = 40, 60
_OWN = (ROW_ID, READ_AS, UNSCORABLE, SPANS)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Rows by the value of a column.

    Attributes:
        names: The values, as they may be shown.
        codes: For each row the index of its value, uint16 (n,); one past the last name for a row without one.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, cells: Sequence[str | None]) -> Groups:
        """From the values of each row, the most frequent first."""
        names = [name for name, _ in Counter(cell for cell in cells if cell is not None).most_common()]
        place = {name: number for number, name in enumerate(names)}
        codes = np.array([len(names) if cell is None else place[cell] for cell in cells], np.uint16)
        return cls(tuple(shown(name) for name in names), codes)


class RowColumns:
    """What is known of n rows, counted through all splits.

    Args:
        saved: The rows and the steps that filled their columns.
        column: The score column that decides.

    Attributes:
        scores: The score that decides, float64 (n,), NaN where a row has none.
        ids: Row ids.
        first: For each row the first one with the same id, int32 (n,).
        turns: For each row the turn of the span that has its score, int16 (n,), -1 where it is not known.
        others: Name -> numbers (n,) of every score column.
        groups: Name -> rows by the value of a column that has few.
    """

    def __init__(self, saved: Saved, column: str) -> None:
        self.saved, self.column = saved, column
        self._parts: list[Dataset] = parts_of(saved.rows)
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.scores = numbers_of(saved.rows, column)
        self.ids = [name for part in self._parts for name in row_ids(part, saved.mapping)]
        known: dict[str, int] = {}
        self.first = np.array([known.setdefault(name, place) for place, name in enumerate(self.ids)], np.int32)
        self.turns = np.concatenate([self._deciding_turns(part) for part in self._parts])
        names = dict.fromkeys(name for step in saved.steps for name in step.produces() if name.endswith(DECIDING))
        self.others = {name: numbers_of(saved.rows, name) for name in names if self._everywhere(name)}
        self.groups = self._groups()

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def parts(self) -> list[Dataset]:
        """The splits, in order."""
        return self._parts

    def row(self, place: int) -> Dataset:
        """One row, as a data set of its own."""
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._parts[part].select([place - int(self._starts[part])])

    def copies(self, place: int) -> list[int]:
        """The other rows with the same id."""
        return [int(other) for other in np.flatnonzero(self.first == self.first[place]) if other != place]

    def _everywhere(self, name: str) -> bool:
        return all(name in column_names(part) for part in self._parts)

    def _deciding_turns(self, part: Dataset) -> np.ndarray:
        """The turn of the span that has the score of each row, int16 (n,)."""
        names = {name for name in part.column_names if name.endswith(("_span", "_by")) or name == SPANS}
        turns = np.full(len(part), UNKNOWN, np.int16)
        if SPANS not in names:
            return turns
        batch = Batch(part.select_columns(sorted(names)).with_format("arrow")[:])
        spans = batch.spans()
        assert spans is not None  # among the columns
        methods = np.array([step.METHOD for step in deciding_scores(batch, self.column, self.saved.steps)], object)
        for method in set(methods.tolist()):
            if span_column(method) not in names:
                continue
            at = np.nan_to_num(batch.numbers(span_column(method)), nan=UNKNOWN).astype(np.int64)
            rows = np.flatnonzero((methods == method) & (at >= 0) & (at < spans.counts))
            turns[rows] = spans.values["turn"][spans.offsets[rows] + at[rows]]
        return turns

    def _groups(self) -> dict[str, Groups]:
        """Rows by split, by the columns that name kinds of rows, and by the turn that decides."""
        found: dict[str, Groups] = {}
        splits = splits_of(self.saved.rows)
        if len(splits) > 1:
            found[SPLIT] = Groups.of([name for name, part in splits.items() for _ in range(len(part))])
        own = {name for step in self.saved.steps for name in step.produces()} | {*_OWN} | SPOKEN
        own |= set((self.saved.mapping or {}).values())
        for name in dict.fromkeys(name for part in self._parts for name in column_names(part) if name not in own):
            cells = [cell for part in self._parts for cell in _names_in(part, name)]
            if _are_kinds(cells):
                found[shown(name)] = Groups.of(cells)
        reasons = [cell for part in self._parts for cell in _names_in(part, UNSCORABLE)]
        if any(reasons):
            found[UNSCORABLE] = Groups.of([cell or None for cell in reasons])
        if len(set(self.turns.tolist()) - {UNKNOWN}) > 1:
            found[TURN] = Groups.of([None if turn < 0 else str(turn) for turn in self.turns.tolist()])
        return found


def _names_in(part: Dataset, name: str) -> list[str | None]:
    """The values of a column of texts, classes, truth values or whole numbers; else of no row any."""
    if name not in part.column_names:
        return [None] * len(part)
    kind = part.features[name]
    classes: list[str] | None = getattr(kind, "names", None)
    if classes is None and getattr(kind, "dtype", "") not in (
        "string",
        "large_string",
        "bool",
        "int64",
        "int32",
        "int8",
    ):
        return [None] * len(part)
    cells: list[Any] = part.with_format(None)[name][:]
    if classes is not None:
        return [classes[cell] if isinstance(cell, int) and 0 <= cell < len(classes) else None for cell in cells]
    return [None if cell is None else str(cell) for cell in cells]


def _are_kinds(cells: Sequence[str | None]) -> bool:
    """Whether values name kinds of rows: few, short, and each but for rare ones of several rows.

    A long value, or one of a single row, may be text of that row, which stays hidden until asked for.
    """
    values = set(cells) - {None}
    short = all(len(value) <= _LONGEST_NAME and "\n" not in value for value in values if value is not None)
    return short and 1 < len(values) <= min(_MOST_VALUES, len(cells) // 4)
