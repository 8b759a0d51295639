"""The decisions of people on single rows, in a file that only grows; `RowDecisions` says what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_safefilter.checks import is_finite, require_choice
from hf_safefilter.storage.append_log import AppendLog

KEEP, DROP, MASK, UNSURE, WITHDRAWN = "keep", "drop", "mask", "unsure", "withdrawn"
DECISIONS = (KEEP, DROP, MASK, UNSURE)

_LONGEST_TIME = 64


@dataclass(frozen=True, slots=True)
class RowDecision:
    """What one person decides on one row.

    Attributes:
        row_id: Id of the row.
        decision: "keep", "drop", "mask" (some of its turns), "unsure", or "withdrawn": the earlier one counts no
            longer.
        who: Name of the person.
        when: Time in UTC, ISO 8601.
        turns: Indices of the turns that are masked, among all messages of the row, as in its spans.
        threshold: The threshold at that time; None if there was none.
        score: The score of the row at that time; None if it had none.
        note: What the person has to say about it.
        reference: Whether the row is to join the references: a dropped one the unsafe ones, a kept one the ordinary.
    """

    row_id: str
    decision: str
    who: str
    when: str
    turns: tuple[int, ...] = ()
    threshold: float | None = None
    score: float | None = None
    note: str = ""
    reference: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RowDecision:
        """A line of a log.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """
        known = {name: values[name] for name in cls.__slots__ if name in values}
        decision = cls(**known | {"turns": tuple(known.get("turns") or ())})
        texts = (decision.row_id, decision.decision, decision.who, decision.when, decision.note)
        if not all(isinstance(text, str) for text in texts) or decision.decision not in (*DECISIONS, WITHDRAWN):
            raise ValueError(decision.decision)
        numbers = (decision.threshold, decision.score)
        if len(decision.when) > _LONGEST_TIME or not all(number is None or is_finite(number) for number in numbers):
            raise ValueError("a time or a number of another kind")
        if not all(isinstance(turn, int) and turn >= 0 for turn in decision.turns):
            raise ValueError(decision.turns)
        if (decision.decision == MASK) != bool(decision.turns):
            raise ValueError("turns are masked, and no other decision has some")
        if not isinstance(decision.reference, bool) or (decision.reference and decision.decision not in (KEEP, DROP)):
            raise ValueError("a row joins the references by being kept or dropped")
        return decision


class DecisionLog:
    """Decisions of people, one JSON object a line, each on the disk before the next.

    Raises:
        IntegrityError: A line is no decision.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = AppendLog(path)
        self._decisions = self._log.read(RowDecision.of, "decision")

    def append(self, decision: RowDecision) -> None:
        """Write a decision to the disk."""
        require_choice("decision", decision.decision, (*DECISIONS, WITHDRAWN))
        self._log.append(asdict(RowDecision.of(asdict(decision))))
        self._decisions.append(decision)

    def digest(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return self._log.digest()

    @property
    def current(self) -> dict[tuple[str, str], RowDecision]:
        """Row id and person -> the decision that counts, in the order in which these were made."""
        last: dict[tuple[str, str], RowDecision] = {}
        for decision in self._decisions:
            key = (decision.row_id, decision.who)
            last.pop(key, None)
            if decision.decision != WITHDRAWN:
                last[key] = decision
        return last


def is_later(when: str, than: str) -> bool:
    """Whether a time in ISO 8601 is after another; False where one of them is none."""
    try:
        one, other = (datetime.fromisoformat(text) for text in (when, than))
        return (one if one.tzinfo else one.replace(tzinfo=UTC)) > (other if other.tzinfo else other.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return False
