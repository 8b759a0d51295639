"""The decisions of people on rows as labels: who drops a row takes it for unsafe, who keeps it for safe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hf_safefilter.decide.decision_log import DROP, KEEP, MASK, DecisionLog, RowDecision
from hf_safefilter.decide.row_decisions import strictest
from hf_safefilter.labeling.label_log import SAFE, UNSAFE, UNSURE, Answer, counted

_LABELS = {DROP: UNSAFE, MASK: UNSAFE, KEEP: SAFE, "": UNSURE}
_SIDES = {DROP: "unsafe", KEEP: "safe"}


@dataclass(frozen=True, slots=True)
class DecidedLabels:
    """Decisions as they are at one moment, read as `LabelRounds` reads a log of labels; they are never written to.

    Where people differ the strictest word counts, as in a selection.

    Attributes:
        path: The file of the decisions.
        sha256: Its digest.
        by_row: Row id -> the decisions that count, one a person; rows in the order of their last decision.
        without: Ids of rows that are no labels, such as those that have joined the references.
    """

    path: Path
    sha256: str
    by_row: Mapping[str, tuple[RowDecision, ...]]
    without: frozenset[str] = frozenset()

    @classmethod
    def of(cls, log: DecisionLog) -> Self:
        """The decisions of a log; nobody may write to it meanwhile."""
        by_row: dict[str, tuple[RowDecision, ...]] = {}
        for decision in log.current.values():
            by_row[decision.row_id] = (*by_row.pop(decision.row_id, ()), decision)
        return cls(log.path, log.digest(), by_row)

    def without_rows(self, ids: Collection[str]) -> DecidedLabels:
        """The same, where these rows are no labels."""
        return DecidedLabels(self.path, self.sha256, self.by_row, frozenset(ids))

    @property
    def joining(self) -> dict[str, str]:
        """Row id -> side, of the rows that somebody has marked as references and all who decided keep, or drop."""
        sides = {}
        for row_id, decisions in self.by_row.items():
            words = {decision.decision for decision in decisions}
            if any(decision.reference for decision in decisions) and len(words) == 1 and words <= set(_SIDES):
                sides[row_id] = _SIDES[words.pop()]
        return sides

    @property
    def current(self) -> dict[str, Answer]:
        """Row id -> the label that follows from the decisions on it, in the order in which these were made."""
        return {
            row_id: Answer(row_id, _LABELS[strictest(decisions)], decisions[-1].who, decisions[-1].when, 0)
            for row_id, decisions in self.by_row.items()
            if row_id not in self.without
        }

    def summary(self) -> dict[str, Any]:
        """Digest of the file, and how many rows have which label, as the record of a probe states them."""
        return counted(self.sha256, self.current.values())
