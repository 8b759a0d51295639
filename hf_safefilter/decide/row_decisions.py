"""What follows for a selection from the decisions of people on single rows.

Each person's last word on a row counts. Where several differ, the strictest does: drop, then mask, then keep. Who is
unsure decides nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_safefilter.decide.decision_log import DROP, KEEP, MASK, UNSURE, DecisionLog, RowDecision
from hf_safefilter.decide.reviewer_agreement import Agreement
from hf_safefilter.errors import DataError, IntegrityError, MissingError

_STRICTEST = (DROP, MASK, KEEP)


@dataclass(frozen=True, slots=True)
class RowDecisions:
    """What follows for each row on which somebody has decided; part of a selection, known by its digest.

    Attributes:
        rulings: Row id, "keep", "drop" or "mask", and the turns to mask; in the order of the ids.
        reviewers: Names of the people.
        agreement: How far they agree.
        sha256: Digest of the rulings.
    """

    rulings: tuple[tuple[str, str, tuple[int, ...]], ...] = field(repr=False, compare=False)
    reviewers: tuple[str, ...] = field(default=(), compare=False)
    agreement: Agreement = field(default=Agreement(0, 0, None), compare=False)
    sha256: str = field(init=False)
    _by_row: dict[str, tuple[str, tuple[int, ...]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rulings = tuple((str(row), str(ruling), tuple(map(int, turns))) for row, ruling, turns in sorted(self.rulings))
        lines = "".join(json.dumps(ruling) + "\n" for ruling in rulings)
        set_field = object.__setattr__
        set_field(self, "rulings", rulings)
        set_field(self, "sha256", hashlib.sha256(lines.encode()).hexdigest())
        set_field(self, "_by_row", {row: (ruling, turns) for row, ruling, turns in rulings})

    def __reduce__(self) -> tuple[Any, ...]:
        return RowDecisions, (self.rulings, self.reviewers, self.agreement)

    def __len__(self) -> int:
        return len(self.rulings)

    @classmethod
    def read(cls, path: str | Path) -> RowDecisions:
        """What follows from a log.

        Raises:
            MissingError: There is no such file.
            DataError: It decides nothing.
            IntegrityError: A line is no decision.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise MissingError(f"there is no file {file}", fix="make decisions: hf-safefilter review --help")
        current = DecisionLog(file).current.values()
        by_row: dict[str, list[RowDecision]] = {}
        for decision in current:
            if decision.decision != UNSURE:
                by_row.setdefault(decision.row_id, []).append(decision)
        if not by_row:
            raise DataError(f"{file} decides on no row", fix="make decisions: hf-safefilter review --help")
        reviewers = tuple(sorted({decision.who for decision in current}))
        return cls(
            tuple(_ruling(row, decisions) for row, decisions in by_row.items()), reviewers, Agreement.of(current)
        )

    @property
    def masks_turns(self) -> bool:
        """Whether turns of some row are masked, which changes that row."""
        return any(ruling == MASK for _, ruling, _ in self.rulings)

    def of_rows(self, ids: Sequence[str]) -> np.ndarray:
        """What is ruled on each row, str (n,): "keep", "drop", "mask", or "" for a row that nobody decided on."""
        return np.array([self._by_row.get(row_id, ("", ()))[0] for row_id in ids], dtype="U4")

    def masked_turns(self, row_id: str) -> set[int]:
        """The turns of a row that are masked."""
        return set(self._by_row.get(row_id, ("", ()))[1])

    def to_json(self) -> dict[str, Any]:
        """Plain values from which `from_json` makes the same."""
        return {
            "rulings": [[row, ruling, list(turns)] for row, ruling, turns in self.rulings],
            "reviewers": list(self.reviewers),
            "agreement": asdict(self.agreement),
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RowDecisions:
        """See `to_json`.

        Raises:
            IntegrityError: The values are damaged.
        """
        try:
            decisions = cls(
                tuple((row, ruling, tuple(turns)) for row, ruling, turns in values["rulings"]),
                tuple(map(str, values["reviewers"])),
                Agreement(**values["agreement"]),
            )
            wrong = {ruling for _, ruling, _ in decisions.rulings} - set(_STRICTEST)
            if wrong or decisions.sha256 != values["sha256"]:
                raise ValueError(f"{wrong or 'the digest'}")
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                "the decisions on single rows are damaged", fix="decide again: hf-safefilter select --help"
            ) from error
        return decisions


def strictest(decisions: Iterable[RowDecision]) -> str:
    """What several decisions on a row come to: "drop", "mask" or "keep"; "" where all are unsure, or there are none."""
    said = {decision.decision for decision in decisions}
    return next((word for word in _STRICTEST if word in said), "")


def _ruling(row: str, decisions: Sequence[RowDecision]) -> tuple[str, str, tuple[int, ...]]:
    ruling = strictest(decisions)
    turns = {turn for decision in decisions for turn in decision.turns} if ruling == MASK else set()
    return row, ruling, tuple(sorted(turns))
