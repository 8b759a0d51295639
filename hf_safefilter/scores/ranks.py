"""Several scores taken as ranks among the rows they were fitted on, so that scores of unlike scales can be combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.reasons import listed, next_step, reasons_in
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores.base import Score, record_batches
from hf_safefilter.step import Step
from hf_safefilter.storage.fitted import Fitted

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

_FILE = "ranks.safetensors"


class Ranks(Fitted):
    """The sorted scores among which a row is ranked; made by `fit_ranks`."""

    KIND = "ranks"

    @property
    def columns(self) -> tuple[str, ...]:
        """The score columns that are ranked."""
        return tuple(self.facts["columns"])

    @cached_property
    def sorted(self) -> tuple[np.ndarray, ...]:
        """The finite scores of each column, ascending, float32."""
        from safetensors.numpy import load

        tensors = load(self.bytes_of(_FILE))
        return tuple(tensors[str(index)] for index in range(len(self.columns)))

    def rank(self, index: int, scores: np.ndarray) -> np.ndarray:
        """Share of the fitted rows of column number `index` below each score, ties counted half; NaN stays NaN."""
        fitted, scores = self.sorted[index], scores.astype(np.float32)
        below, up_to = np.searchsorted(fitted, scores, side="left"), np.searchsorted(fitted, scores, side="right")
        return np.where(np.isfinite(scores), (below + up_to) / (2 * len(fitted)), np.nan)


def fit_ranks(ds: Dataset | DatasetDict | IterableDataset, columns: Sequence[str]) -> Ranks:
    """Learn the ranks of several scores from the rows of `ds` (all splits together).

    Args:
        ds: Rows with the score columns.
        columns: Names of score columns, e.g. ``["larf_score", "nearest_score"]``; higher is more dangerous in each.

    Raises:
        OptionError: No column is named, or one is named twice.
        MissingError: A column is missing.
        DataError: A column holds no finite score.
    """
    columns = list(columns)
    if not columns or len(set(columns)) < len(columns):
        raise OptionError(
            "each score column must be named once",
            found=", ".join(columns) or "none",
            fix="pass for example `columns=['larf_score', 'nearest_score']`",
        )
    parts: list[list[np.ndarray]] = [[] for _ in columns]
    for table in record_batches(ds, columns, fix="score the rows first"):
        batch = Batch(table)
        for part, column in zip(parts, columns, strict=True):
            scores = batch.numbers(column)
            part.append(scores[np.isfinite(scores)].astype(np.float32))
    fitted = {str(index): np.sort(np.concatenate(part)) if part else np.empty(0) for index, part in enumerate(parts)}
    for column, scores in zip(columns, fitted.values(), strict=True):
        if not len(scores):
            reasons = reasons_in(ds)
            raise DataError(
                f"column {column!r} holds no finite score",
                found=listed(reasons) or None,
                fix=next_step(reasons, "leave it out, or score the rows again"),
            )
    from safetensors.numpy import save

    facts = {"columns": columns, "rows": [len(scores) for scores in fitted.values()]}
    return Ranks.make(facts, {_FILE: save(fitted)})


@dataclass(frozen=True, slots=True)
class RankScore(Score):
    """Base of scores that combine those of several methods, as shares of the fitted rows; NaN if any of them is NaN.

    A rank is the share of the fitted rows that score lower, ties counted half, so scores of different scales have the
    same weight. The ranks of rows do not change when other rows are added after the fit.

    Args:
        ranks: What `fit_ranks` returned, or its digest.
    """

    REQUIRES: ClassVar[str] = "scores"

    ranks: Ranks | str
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", Ranks.of(self.ranks).digest)
        Step.__post_init__(self)

    def needs(self) -> tuple[str, ...]:
        """The score columns that are ranked."""
        return Ranks.of(self.ranks).columns

    def scores(self, batch: Batch) -> np.ndarray:
        """The scores of each row, float64 (scores, n); NaN where one is not finite."""
        columns = self.needs()
        for column in columns:
            batch.require(column, f"add {column!r} with the step that it was fitted on")
        values = np.array([batch.numbers(column) for column in columns], np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def shares(self, batch: Batch) -> np.ndarray:
        """Rank of each row in each score, float64 (scores, n)."""
        ranks = Ranks.of(self.ranks)
        return np.array([ranks.rank(index, scores) for index, scores in enumerate(self.scores(batch))])
