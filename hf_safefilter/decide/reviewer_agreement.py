"""How far people agree who have decided on the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_safefilter.decide.decision_log import UNSURE, RowDecision


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts of rows, and a coefficient that chance does not raise.

    Attributes:
        rows: Number of rows on which several people have decided.
        agreed: Of these, on how many they decided alike.
        alpha: Krippendorff's alpha for nominal values: 1 is agreement, 0 what chance gives; None if all decided alike
            on all rows, or no row has several decisions. Source: Krippendorff, Content Analysis (2004), chapter 11.
    """

    rows: int
    agreed: int
    alpha: float | None

    @classmethod
    def of(cls, decisions: Iterable[RowDecision]) -> Agreement:
        """The agreement on rows of the decisions that count; who is unsure is not counted."""
        by_row: dict[str, list[str]] = {}
        for decision in decisions:
            if decision.decision != UNSURE:
                by_row.setdefault(decision.row_id, []).append(decision.decision)
        several = [values for values in by_row.values() if len(values) > 1]
        agreed = sum(len(set(values)) == 1 for values in several)
        total = sum(map(len, several))
        observed = sum(_unlike(values) / (len(values) - 1) for values in several)
        expected = _unlike([value for values in several for value in values]) / max(total - 1, 1)
        return cls(len(several), agreed, 1 - observed / expected if expected else None)


def _unlike(values: Sequence[str]) -> int:
    """The number of ordered pairs of values that differ."""
    return len(values) ** 2 - sum(count**2 for count in Counter(values).values())
