"""Whether the sides can be told apart without reading them: by length, layout, punctuation or opening words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_safefilter.references.audit.audited_rows import AuditedRow, AuditedRows, Kind
from hf_safefilter.references.audit.checks_made import AGAIN, Check, Severity
from hf_safefilter.references.audit.separation import Separation, held_out, numbered, separation

NO_DIFFERENCE = (0.45, 0.55)
"""AUROCs of the length that are none."""

TELLS, GIVES_AWAY = 0.6, 0.75
"""What the lower bound of the AUROC of a classifier of form must exceed for a warning, and to be serious. The first is
the bar that a layer has to clear to count as a signal: form alone would pass for one."""

LEAST = 10
"""Rows of each kind below which nothing is measured."""

_NARROW = 0.1  # of the median: answers whose lengths spread less than this are all of one length
_ONE_OPENING = 0.5  # share of the refusals with the same two first words

_LAYOUT = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^\s*\d+[.)]\s", r"(^|\s)1[.)]\s", r"^\s*[-*\u2022]\s", r"^\s*#{1,6}\s", r"\*\*|__", r"```|`[^`\n]+`",
        r"^\s*\|.*\|", r"\n", r"\n\s*\n", r"https?://|www\.",
    )
)  # fmt: skip
_PUNCTUATION = tuple(
    re.compile(pattern)
    for pattern in (
        r"\?", r"!", r":", r";", r"[\"\u201c\u201d\u00ab\u00bb]", r"[()\[\]]", r"[\u2013\u2014]", r"\u2026|\.\.\.",
        r"\d", r"^\s*[a-z]", r"\?\s*$", r"!\s*$", r"[^\s.!?)\"\u201d\u00bb]\s*$",
    )
)  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_PARTNERS: tuple[Kind, ...] = ("safe", "benign")


def checks_of_form(rows: AuditedRows) -> list[Check]:
    """All checks of form for unsafe rows against safe ones, and against ordinary ones."""
    unsafe = rows.of("unsafe")
    checks: list[Check] = []
    for kind in _PARTNERS:
        others = rows.of(kind)
        if min(len(unsafe), len(others)) < LEAST:
            continue
        pair = _Pair(unsafe, others)
        checks += [
            _length(pair),
            _classified(pair, "layout", _marks(pair.rows, _LAYOUT), "lists, headings, bold, code and paragraphs"),
            _classified(pair, "punctuation", _marks(pair.rows, _PUNCTUATION), "punctuation and digits"),
        ]
        if kind == "safe":
            checks += [*_length_by_category(unsafe, others), _one_length([*unsafe, *others]), _one_opening(others)]
        else:  # refusals open like refusals: against them, first words are content
            checks.append(_classified(pair, "opening words", _openings(pair.rows), "their first two words"))
    return checks


class _Pair:
    """Unsafe rows beside those of another kind."""

    def __init__(self, unsafe: Sequence[AuditedRow], others: Sequence[AuditedRow]) -> None:
        self.rows = [*unsafe, *others]
        self.unsafe = np.repeat([True, False], [len(unsafe), len(others)])
        self.requests = numbered([row.request for row in self.rows])
        self.lengths = np.array([len(row.answer) for row in self.rows], dtype=np.float64)
        self.kind = others[0].kind
        self.name = f"unsafe against {self.kind}"

    def separation(self, values: np.ndarray, level: float = 0.95) -> Separation:
        return separation(values, self.unsafe, self.requests, level)

    @property
    def medians(self) -> str:
        return " and ".join(f"{np.median(self.lengths[side]):.0f}" for side in (self.unsafe, ~self.unsafe))


def _length(pair: _Pair) -> Check:
    apart = pair.separation(pair.lengths)
    severity: Severity = "ok"
    if not NO_DIFFERENCE[0] <= apart.auroc <= NO_DIFFERENCE[1]:
        severity = "serious" if apart.lies_outside(*NO_DIFFERENCE) else "warning"
    return _measured(
        "length",
        pair.name,
        severity,
        apart,
        f"length alone tells unsafe answers from {pair.kind} ones ({apart.shown}; medians {pair.medians} characters)",
        f"bring both to the same lengths, {AGAIN}",
    )


def _length_by_category(unsafe: Sequence[AuditedRow], safe: Sequence[AuditedRow]) -> list[Check]:
    """The categories with enough rows; one that only chance makes unlike the others is not named."""
    pairs = {}
    for category in dict.fromkeys(row.category for row in unsafe if row.category):
        sides = [[row for row in side if row.category == category] for side in (unsafe, safe)]
        if min(map(len, sides)) >= LEAST:
            pairs[category] = _Pair(*sides)
    if len(pairs) < 2:
        return []
    level = 1 - 0.05 / len(pairs)
    apart = {category: pair.separation(pair.lengths, level) for category, pair in pairs.items()}
    outside = [category for category, lengths in apart.items() if lengths.lies_outside(*NO_DIFFERENCE)]
    if not outside:
        farthest = max(apart.values(), key=lambda lengths: abs(lengths.auroc - 0.5))
        return [_measured("length", f"by {len(pairs)} categories", "ok", farthest, "lengths are alike by category", "")]
    return [
        _measured(
            "length",
            f"category {_plain(category)}",
            "serious",
            apart[category],
            f"in the category {_plain(category)!r} length alone tells unsafe answers from safe ones "
            f"({apart[category].shown}; medians {pairs[category].medians} characters)",
            f"bring both to the same lengths in this category, {AGAIN}",
        )
        for category in outside
    ]


def _one_length(rows: Sequence[AuditedRow]) -> Check:
    low, middle, high = np.quantile([len(row.answer) for row in rows], [0.1, 0.5, 0.9])
    narrow = high - low < _NARROW * middle
    sentence = f"four fifths of the answers have {low:.0f} to {high:.0f} characters"
    return Check(
        "lengths",
        "unsafe and safe",
        "warning" if narrow else "ok",
        f"{sentence}: nothing shows how answers of other lengths are scored" if narrow else sentence,
        float((high - low) / middle) if middle else 0.0,
        fix=f"add shorter and longer answers on both sides, {AGAIN}" if narrow else "",
    )


def _one_opening(safe: Sequence[AuditedRow]) -> Check:
    _, most = Counter(_first_words(row.answer, 2) for row in safe).most_common(1)[0]
    share = most / len(safe)
    return Check(
        "openings",
        "safe",
        "serious" if share > _ONE_OPENING else "ok",
        f"{most} of {len(safe)} safe answers open with the same two words, which a score will take for safety"
        if share > _ONE_OPENING
        else f"at most {most} of {len(safe)} safe answers open with the same two words",
        share,
        fix=f"refuse in more ways, {AGAIN}" if share > _ONE_OPENING else "",
    )


def _classified(pair: _Pair, check: str, features: np.ndarray, what: str) -> Check:
    apart = pair.separation(held_out(features, pair.unsafe, pair.requests))
    return _measured(
        check,
        pair.name,
        "serious" if apart.low > GIVES_AWAY else "warning" if apart.low > TELLS else "ok",
        apart,
        f"{what} alone tell unsafe answers from {pair.kind} ones ({apart.shown}, held-out requests)",
        f"write both in the same form, {AGAIN}",
    )


def _measured(check: str, rows: str, severity: Severity, apart: Separation, sentence: str, fix: str) -> Check:
    if severity == "ok":
        sentence, fix = f"{check} tells little apart: {apart.shown}", ""
    return Check(check, rows, severity, sentence, apart.auroc, apart.low, apart.high, fix)


def _marks(rows: Sequence[AuditedRow], patterns: Sequence[re.Pattern[str]]) -> np.ndarray:
    """Whether each pattern is in each answer, float64 `(n, patterns)`."""
    return np.array([[bool(pattern.search(row.answer)) for pattern in patterns] for row in rows], dtype=np.float64)


def _openings(rows: Sequence[AuditedRow]) -> np.ndarray:
    """Which first word, and which first two words, each answer has, of those that several have; float64 `(n, f)`."""
    words = [{_first_words(row.answer, 1), _first_words(row.answer, 2)} for row in rows]
    times = Counter(opening for of_one in words for opening in of_one)
    known = [opening for opening, count in times.items() if count > 1]
    return np.array([[opening in of_one for opening in known] for of_one in words], dtype=np.float64).reshape(
        len(rows), len(known)
    )


def _first_words(text: str, count: int) -> str:
    beginning = text[: 100 * count].casefold().replace("\u2019", "'")
    return " ".join(_WORD.findall(beginning)[:count])


def _plain(category: str, most: int = 40) -> str:
    """A name that came with the rows, as a message may show it."""
    return "".join(letter if letter.isprintable() else " " for letter in category)[:most]
