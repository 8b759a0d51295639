"""The result of an audit: what was looked at, what it came to, and what to do about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["ok", "note", "warning", "serious"]
_ORDER: tuple[Severity, ...] = ("serious", "warning", "note", "ok")

AGAIN = "then: hf-safefilter reference audit --unsafe FILE --safe FILE"
"""The command after a change of the rows."""


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the rows.

    Attributes:
        check: What was looked at, e.g. "length".
        rows: Which rows, e.g. "unsafe against safe".
        severity: "serious" where scores that go by these rows are not to be trusted; "warning" where they may suffer;
            "note" for what one should know; "ok".
        sentence: What it came to. It holds no text of the rows.
        figure: The number that decides; None where there is no number.
        low: Lower end of its interval, where it has one.
        high: Upper end.
        fix: What to do next; "" where nothing is to be done.
    """

    check: str
    rows: str
    severity: Severity
    sentence: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        counts: Number of rows of each kind: unsafe, safe, benign.
        checks: All that was looked at, the most serious first.
    """

    counts: dict[str, int]
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, counts: dict[str, int], checks: list[Check]) -> Audit:
        """The checks in the order in which to read them."""
        return cls(counts, tuple(sorted(checks, key=lambda check: _ORDER.index(check.severity))))

    @property
    def findings(self) -> tuple[Check, ...]:
        """What is not in order."""
        return tuple(check for check in self.checks if check.severity != "ok")

    @property
    def serious(self) -> bool:
        """Whether something speaks against using these rows as they are."""
        return any(check.severity == "serious" for check in self.checks)

    def table(self) -> list[dict[str, Any]]:
        """One row a check, for printing."""
        return [
            {
                "check": check.check,
                "rows": check.rows,
                "figure": _shown(check.figure),
                "from": _shown(check.low),
                "to": _shown(check.high),
                "result": check.severity,
            }
            for check in self.checks
        ]

    def sentences(self) -> list[str]:
        """What is not in order, and what to do about it."""
        return [
            f"{check.severity}: {check.sentence}" + (f"; to do: {check.fix}" if check.fix else "")
            for check in self.findings
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        severities = Counter(check.severity for check in self.checks)
        return {
            "counts": self.counts,
            "severities": {severity: severities[severity] for severity in _ORDER},
            "checks": [asdict(check) for check in self.checks],
        }


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".removesuffix(".00")
