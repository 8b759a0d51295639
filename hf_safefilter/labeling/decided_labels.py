"""The decisions of people on rows as labels: who drops a row takes it for unsafe, who keeps it for safe."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hf_safefilter.decide.decision_log import DROP, KEEP, MASK, DecisionLog, RowDecision
from hf_safefilter.decide.row_decisions import strictest
from hf_safefilter.labeling.label_log import SAFE, UNSAFE, UNSURE, Answer, counted

_LABELS = {DROP: UNSAFE, MASK: UNSAFE, KEEP: SAFE, "": UNSURE}


class DecidedLabels:
    """A log of decisions, read as `LabelRounds` reads a log of labels; it is never written to.

    Where people differ the strictest word counts, as in a selection.

    Args:
        log: The decisions.
        without: Ids of rows that are no labels, such as those that have joined the references.
    """

    def __init__(self, log: DecisionLog, without: Collection[str] = ()) -> None:
        self._log, self._without = log, frozenset(without)

    @property
    def path(self) -> Path:
        """The file of the decisions."""
        return self._log.path

    @property
    def current(self) -> dict[str, Answer]:
        """Row id -> the label that follows from the decisions on it, in the order in which these were made."""
        return {
            row_id: Answer(row_id, _LABELS[strictest(decisions)], decisions[-1].who, decisions[-1].when, 0)
            for row_id, decisions in decisions_by_row(self._log).items()
            if row_id not in self._without
        }

    def summary(self) -> dict[str, Any]:
        """Digest of the file, and how many rows have which label, as the record of a probe states them."""
        return counted(self._log.digest(), self.current.values())


def decisions_by_row(log: DecisionLog) -> dict[str, list[RowDecision]]:
    """Row id -> the decisions that count, one a person; rows in the order of their last decision."""
    by_row: dict[str, list[RowDecision]] = {}
    for decision in log.current.values():
        by_row[decision.row_id] = [*by_row.pop(decision.row_id, []), decision]
    return by_row
