"""The rows of an audit: what is asked and answered in them, and what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from hf_safefilter.data.conversations import Conversation, answered_text, as_conversations, prompt_of
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.references.audit.languages import language_of

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex

Kind = Literal["unsafe", "safe", "benign"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Harmful requests answered; the same requests refused; ordinary requests answered."""

_PAIR = "preference_pair"


@dataclass(frozen=True, slots=True)
class AuditedRow:
    """One row that could be read.

    Attributes:
        kind: Its kind.
        position: Its index among the rows of its kind, from 0.
        request: The last user turn before the last answer.
        answer: All that a trainer would learn.
        row_id: Its id.
        category: What its column `category` holds; "" without one.
        language: What its column `language` holds; else what its words say.
    """

    kind: Kind
    position: int
    request: str
    answer: str
    row_id: str
    category: str
    language: str


@dataclass(frozen=True, slots=True)
class AuditedRows:
    """Rows of all kinds.

    Attributes:
        rows: Those that could be read.
        unread: Kind -> reason -> number of rows that could not.
        counts: Kind -> number of rows.
    """

    rows: tuple[AuditedRow, ...]
    unread: dict[Kind, Counter[str]]
    counts: dict[str, int]

    def of(self, kind: Kind) -> list[AuditedRow]:
        """The rows of a kind."""
        return [row for row in self.rows if row.kind == kind]


def read_rows(
    rows_by_kind: Mapping[Kind, Iterable[Mapping[str, Any]]], columns: Mapping[str, str] | None
) -> AuditedRows:
    """Read rows as `ReferenceIndex.build` does.

    Raises:
        DataError: Columns of no known shape.
    """
    rows: list[AuditedRow] = []
    unread: dict[Kind, Counter[str]] = {}
    counts: dict[str, int] = {}
    for kind, given in rows_by_kind.items():
        listed = [dict(row) for row in given]
        said = as_conversations(listed, columns)
        faults = [talk.reason or (_PAIR if talk.rejected is not None else "") for talk in said]
        unread[kind] = Counter(filter(None, faults))
        counts[kind] = len(listed)
        for position, (row, talk, fault) in enumerate(zip(listed, said, faults, strict=True)):
            if not fault:
                rows.append(_row(kind, position, talk, row.get("category"), row.get("language")))
    return AuditedRows(tuple(rows), unread, counts)


def rows_of(index: ReferenceIndex) -> AuditedRows:
    """The rows of references that were built; these could all be read."""
    by_kind: dict[Kind, list[Conversation]] = {"unsafe": [row.conversation for row in index.rows("unsafe")]}
    by_kind["safe"] = [row.conversation for row in index.rows("safe") if not row.benign]
    if index.benign:
        by_kind["benign"] = [row.conversation for row in index.rows("safe") if row.benign]
    rows = [
        _row(kind, position, said, None, None)
        for kind, conversations in by_kind.items()
        for position, said in enumerate(conversations)
    ]
    counts: dict[str, int] = {kind: len(conversations) for kind, conversations in by_kind.items()}
    return AuditedRows(tuple(rows), {kind: Counter() for kind in by_kind}, counts)


def named(rows: Sequence[AuditedRow], most: int = 5) -> str:
    """Some rows by their places, for a message."""
    shown = ", ".join(str(row.position) for row in rows[:most])
    return f"{rows[0].kind} rows {shown}{', ...' if len(rows) > most else ''} (counted from 0)"


def _row(kind: Kind, position: int, said: Conversation, category: Any, language: Any) -> AuditedRow:
    request, answer = prompt_of(said), answered_text(said)
    return AuditedRow(
        kind,
        position,
        request,
        answer,
        row_id(said),
        "" if category is None else str(category),
        language_of(f"{request}\n{answer}") if language in (None, "") else str(language),
    )
