"""The steps of a record, and what the scores of rows that are read again are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_safefilter.data.batch import Batch
from hf_safefilter.errors import IntegrityError, PublishError, SafefilterError
from hf_safefilter.pipeline.changed_rows import ids_as_kept
from hf_safefilter.publish.provenance import Decision, Provenance
from hf_safefilter.publish.published_rows import mapping_of
from hf_safefilter.publish.rescoring import read_columns, require_ranks, step_of, tolerance_of
from hf_safefilter.saved.saved_rows import step_from
from hf_safefilter.scores.largest import LOWEST, QUARTILE, LargestDeviation
from hf_safefilter.scores.ranks import Ranks, RankScore

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.step import Step

_LARGER = 2  # times the tolerance of the scores made here, of which a sample knows the deviation only roughly
_RARE = 1e-4  # how seldom so many, or so few, of an honest sample lie below a quantile
_FEW = 30
_WIDE = 3  # ranges of a sample that the lowest scores may lie below it
_FAR = 1.95  # Kolmogorov and Smirnov's distance, times the root of n, that one honest sample in a thousand exceeds


class CannotSay(Exception):
    """Something is missing that a check needs."""


@dataclass(frozen=True, slots=True)
class RecordedScoring:
    """The steps of a record, and what they are held to.

    Attributes:
        steps: The steps.
        column: The score column that decided.
        threshold: Rows that score this or more were dropped.
        selection: The decision.
        mapping: Where things stand in a row.
        read: The score columns that are computed from the rows themselves.
        tolerances: By how much each of these may differ, float64 (columns,).
    """

    steps: list[Step]
    column: str
    threshold: float
    selection: Decision
    mapping: Mapping[str, str] | None
    read: tuple[str, ...]
    tolerances: np.ndarray

    @property
    def changed(self) -> bool:
        """Whether rows that reach the threshold may have been kept, switched or masked."""
        return self.selection.action != "drop"

    @classmethod
    def of(cls, provenance: Provenance) -> RecordedScoring:
        """Those of a record.

        Raises:
            CannotSay: A step cannot be made here.
            IntegrityError: The record makes no sense.
        """
        # A record of a stranger does not choose where the rows of the source are sent.
        asked = [record["endpoint"] for record in provenance.steps if record.get("endpoint")]
        try:
            steps = [step_from(record) for record in provenance.steps if not record.get("endpoint")]
        except SafefilterError as error:
            raise CannotSay(f"a step cannot be made here: {error.fact}") from error
        selection = provenance.selection
        try:
            deciding, read = step_of(selection.column, steps), read_columns(selection.column, steps)
        except PublishError:
            if not asked:
                raise
            raise CannotSay(
                f"it was decided by a model at {asked[0]}, whose weights nobody can pin, and which is not asked"
            ) from None
        tolerances = np.array([provenance.check.tolerance])
        if isinstance(deciding, RankScore):
            if read != deciding.needs():
                raise CannotSay("ranks of ranks are not read again")
            tolerances = np.array([tolerance_of(fitted) for fitted in Ranks.of(deciding.ranks).sorted])
        if not np.isfinite(tolerances).all():
            raise IntegrityError("the tolerance that is stated is no number")
        return cls(steps, selection.column, selection.threshold, selection, mapping_of(provenance), read, tolerances)

    def bounded(self, columns: Sequence[Mapping[str, Any]]) -> RecordedScoring:
        """The same, held to no more than what these scores, made here, allow, whatever the record states."""
        if not columns:
            return self
        own = np.concatenate([self.scores_in(part) for part in columns])
        most = np.array([_LARGER * tolerance_of(own[:, place]) for place in range(own.shape[1])])
        return replace(self, tolerances=np.minimum(self.tolerances, most))

    def require_ranks_of(self, own: np.ndarray, *, whole: bool) -> None:
        """Raise unless ranks are those of the source: scores made here, (n, columns), lie among them as they should.

        Args:
            own: The scores, NaN where there is none.
            whole: Whether these are of all rows.
        """
        from scipy.stats import ks_2samp

        deciding = step_of(self.column, self.steps)
        if not isinstance(deciding, RankScore):
            return
        for place, fitted in enumerate(Ranks.of(deciding.ranks).sorted):
            finite = np.sort(own[np.isfinite(own[:, place]), place])
            if whole and len(finite) != len(fitted):
                raise IntegrityError("the ranks are of another number of rows than the source has")
            far = len(finite) > 0 and ks_2samp(finite, fitted).statistic > _FAR / math.sqrt(len(finite))
            if whole:  # sorted numbers differ by no more than the largest difference of a pair
                far = far or bool((np.abs(finite - fitted) > self.tolerances[place]).any())
            elif isinstance(deciding, LargestDeviation):
                far = far or not may_be_scale_of(finite, fitted)
            if far:
                raise IntegrityError("the ranks are not those of the source's scores", found=self.read[place])

    def require_ranks(self, dropped: pa.Table) -> None:
        """Raise unless the recorded ranks follow from the recorded scores."""
        from datasets import Dataset
        from datasets.table import InMemoryTable

        require_ranks(Dataset(InMemoryTable(dropped)), self.steps, self.column)

    def recorded(self, dropped: pa.Table) -> dict[tuple[str, str], np.ndarray]:
        """Split and row id -> the scores that are recorded of a dropped row, float64 (columns,)."""
        scores = np.stack([numbers_in(dropped, name) for name in self.read], axis=1)
        keys = zip(dropped["split"].to_pylist(), dropped["row_id"].to_pylist(), strict=True)
        return dict(zip(keys, scores, strict=True))

    def require_alike(
        self,
        ids: list[str],
        columns: Mapping[str, Any],
        recorded: Mapping[str, np.ndarray | None],
        by_people: list[bool],
    ) -> None:
        """Raise unless dropped rows have their recorded scores, and no other reaches the threshold but by people."""
        again = self.scores_in(columns)
        for id_, scores, least, ruled in zip(ids, again, self._least(again), by_people, strict=True):
            before = recorded[id_]
            if before is not None and not self._agree(scores, before):
                raise IntegrityError(f"a dropped row has the scores {scores.tolist()}, others are recorded", found=id_)
            if before is None and not (ruled or least < self.threshold or (self.changed and np.isfinite(least))):
                raise IntegrityError(f"a row was kept that has the scores {scores.tolist()}", found=id_)

    def require_changed(
        self,
        free: list[int],
        ids: list[str],
        rows: Dataset,
        columns: Mapping[str, Any],
        recorded: Mapping[str, np.ndarray | None],
        held: set[str],
    ) -> None:
        """Raise unless rows on which nobody has decided are kept as the score changes them, or dropped.

        Args:
            free: Places of these rows.
            ids: Ids of all rows.
            rows: The rows of the source.
            columns: Their columns, scored again.
            recorded: Row id -> the scores that are recorded of a dropped row.
            held: Ids of the kept rows.
        """
        scores = self.scores_in(columns)
        least, most = self._least(scores), self._least(scores + 2 * self.tolerances)
        expected = ids_as_kept(
            rows, columns, self.selection, reached=least >= self.threshold,
            near=(least < self.threshold) & (most >= self.threshold), tolerance=float(self.tolerances.max()),
            columns=self.mapping,
        )  # fmt: skip
        for place in free:
            name = expected[place]
            if name == "" and recorded[ids[place]] is None:
                raise IntegrityError(
                    "a row was kept that has no score, or nothing that may be trained on", found=ids[place]
                )
            if name and name not in held:
                raise IntegrityError("a row is not kept as its scores say", found=ids[place])

    def scores_in(self, columns: Mapping[str, Any]) -> np.ndarray:
        """The scores that are computed from the rows themselves, float64 (n, columns)."""
        return np.stack([np.asarray(columns[name], dtype=np.float64) for name in self.read], axis=1)

    def _agree(self, scores: np.ndarray, before: np.ndarray) -> bool:
        known = np.isfinite(before)
        same = bool(np.array_equal(np.isfinite(scores), known))
        return same and bool((np.abs(scores - before)[known] <= self.tolerances[known]).all())

    def _least(self, scores: np.ndarray) -> np.ndarray:
        """The smallest deciding score of each row, float64 (n,), that rounding of `scores` (n, columns) allows."""
        lower = dict(zip(self.read, (scores - self.tolerances).T, strict=True))
        deciding = step_of(self.column, self.steps)
        if not isinstance(deciding, RankScore):
            return lower[self.column]
        return np.asarray(deciding.compute(Batch(lower), None)[self.column], dtype=np.float64)


def may_be_scale_of(sample: np.ndarray, fitted: np.ndarray) -> bool:
    """Whether deviations are measured as this sample of the scores allows, which says little of a few lowest ones.

    Whoever moves these alone makes a deviation so long, or so short, that one of several scores decides nothing.
    """
    from scipy.stats import binom

    if not len(sample):
        return True
    lowest, quartile = np.quantile(fitted.astype(np.float64), [LOWEST, QUARTILE])
    for value, share in ((lowest, LOWEST), (quartile, QUARTILE)):
        below, up_to = int((sample < value).sum()), int((sample <= value).sum())
        if min(binom.sf(below - 1, len(sample), share), binom.cdf(up_to, len(sample), share)) < _RARE:
            return False
    # a sample of a few need not hold any of the lowest
    return bool(len(sample) < _FEW or lowest >= sample.min() - _WIDE * (sample.max() - sample.min()))


def numbers_in(table: pa.Table, column: str) -> np.ndarray:
    """A column of numbers, NaN where there is none."""
    return Batch(table).numbers(column)
