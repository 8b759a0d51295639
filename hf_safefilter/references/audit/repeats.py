"""Rows that say what another row says, on their own side or on the other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.references.audit.audited_rows import KINDS, AuditedRow, AuditedRows, Kind, named
from hf_safefilter.references.audit.checks_made import AGAIN, Check, Severity

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ALIKE = 0.8
"""Jaccard similarity of the runs of characters of two answers from which they count as the same."""

_RUN = 5  # characters
_MANY = 0.1  # share of the rows of a side that may repeat another one before it is serious
_MOST = 4000  # rows of a kind that are compared; of more, so many are taken, spread evenly
_AT_ONCE = 500


def checks_of_repeats(rows: AuditedRows) -> list[Check]:
    """Rows said twice, answers said nearly twice, and both across the sides."""
    sides = [_Answers.of(rows.of(kind)) for kind in KINDS if rows.of(kind)]
    checks = [check for side in sides for check in _inside(side)]
    if sides and sides[0].kind == "unsafe":
        checks += [check for other in sides[1:] for check in _across(sides[0], other)]
    return checks


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """The rows of a kind.

    Attributes:
        rows: All of them.
        compared: Those that are compared.
        runs: Which runs of characters are in the answer of each of these, by hash: sparse float32 `(n, hashes)`.
    """

    rows: Sequence[AuditedRow]
    compared: Sequence[AuditedRow]
    runs: csr_matrix

    @classmethod
    def of(cls, rows: Sequence[AuditedRow]) -> _Answers:
        from sklearn.feature_extraction.text import HashingVectorizer

        compared = rows
        if len(rows) > _MOST:
            compared = [rows[place] for place in np.linspace(0, len(rows) - 1, _MOST).round().astype(int)]
        hashed = HashingVectorizer(analyzer=_runs, binary=True, norm=None, alternate_sign=False, dtype=np.float32)
        return cls(rows, compared, hashed.transform([row.answer for row in compared]))

    @property
    def kind(self) -> Kind:
        return self.rows[0].kind

    def alike(self, other: _Answers) -> list[tuple[int, int]]:
        """Places of the answers on both sides of which `ALIKE` or more of the runs of characters are shared."""
        sizes = np.diff(other.runs.indptr)
        found: list[tuple[int, int]] = []
        for start in range(0, len(self.compared), _AT_ONCE):
            part = self.runs[start : start + _AT_ONCE]
            shared = (part @ other.runs.T).tocoo()
            union = np.diff(part.indptr)[shared.row] + sizes[shared.col] - shared.data
            near = shared.data >= ALIKE * union
            found += zip((shared.row[near] + start).tolist(), shared.col[near].tolist(), strict=True)
        return found


def _inside(side: _Answers) -> list[Check]:
    kind, first = side.kind, dict[str, int]()
    for row in side.rows:
        first.setdefault(row.row_id, row.position)
    twice = [row for row in side.rows if first[row.row_id] != row.position]
    later = sorted({place for place, other in side.alike(side) if other < place})
    rows = [side.compared[place] for place in later]
    alike = [row for row in rows if first[row.row_id] == row.position]
    return [
        _share("duplicates", kind, twice, len(side.rows), f"{kind} rows are said twice", "remove them"),
        _share("alike", kind, alike, len(side.compared), f"{kind} answers are nearly another one", "write them anew"),
    ]


def _across(unsafe: _Answers, other: _Answers) -> list[Check]:
    ids, pair = {row.row_id for row in other.rows}, f"unsafe and {other.kind}"
    both = [row for row in unsafe.rows if row.row_id in ids]
    rows = [unsafe.compared[place] for place in sorted({ours for ours, _ in unsafe.alike(other)})]
    alike = [row for row in rows if row.row_id not in ids]
    return [
        _contradiction("duplicates", pair, both, f"rows are on both sides, {pair}"),
        _contradiction("alike", pair, alike, f"unsafe answers are nearly {other.kind} answers too"),
    ]


def _share(check: str, kind: Kind, repeated: Sequence[AuditedRow], count: int, what: str, fix: str) -> Check:
    share = len(repeated) / max(1, count)
    severity: Severity = "serious" if share > _MANY else "warning" if repeated else "ok"
    sentence = f"{len(repeated)} of {count} {what}" + (f": {named(repeated)}" if repeated else "")
    return Check(check, kind, severity, sentence, share, fix=f"{fix}, {AGAIN}" if repeated else "")


def _contradiction(check: str, pair: str, both: Sequence[AuditedRow], what: str) -> Check:
    sentence = f"{len(both)} {what}" + (f": {named(both)}" if both else "")
    fix = f"remove them from one side, {AGAIN}" if both else ""
    return Check(check, pair, "serious" if both else "ok", sentence, float(len(both)), fix=fix)


def _runs(text: str) -> list[str]:
    """All runs of `_RUN` characters; a shorter text is one by itself."""
    folded = " ".join(text.casefold().split())
    return [folded[start : start + _RUN] for start in range(max(1, len(folded) - _RUN + 1))]
