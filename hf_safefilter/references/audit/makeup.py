"""What the rows are made of: how many, of which kinds, topics and languages, and what could not be read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hf_safefilter.data.reasons import advice, listed
from hf_safefilter.references.audit.audited_rows import KINDS, AuditedRow, AuditedRows, Kind
from hf_safefilter.references.audit.checks_made import AGAIN, Check, Severity
from hf_safefilter.references.audit.languages import UNKNOWN
from hf_safefilter.references.audit.separation import FOLDS, numbered

LEAST_ROWS = 2 * FOLDS
"""Rows of each side that choosing a layer by cross-validation needs."""

FEW_ROWS = 50
"""Below so many, the figures that choose a layer are uncertain: an AUROC of 0.8 by 0.09 and more, either way."""

_ONE_TOPIC = 0.5
_OWN_LANGUAGE = 0.2  # difference between the shares of a language on two sides
_LETTERS = 4  # of a word that may be a topic
_PAIR_ADVICE = 'name one side of each pair: `columns={"prompt": "prompt", "response": "chosen", "ignore": "rejected"}`'
_WORD = re.compile(rf"[^\W\d_]{{{_LETTERS},}}")


def checks_of_makeup(rows: AuditedRows) -> list[Check]:
    """All checks of what the rows are made of."""
    return [
        *_unread(rows),
        *_too_few(rows),
        *([_refusals(rows)] if rows.of("safe") else []),
        _ordinary(rows),
        *([_topic(rows.of("unsafe"))] if len(rows.of("unsafe")) >= LEAST_ROWS else []),
        *([_languages(rows)] if rows.rows else []),
    ]


def _unread(rows: AuditedRows) -> list[Check]:
    checks = []
    for kind, reasons in rows.unread.items():
        lost, (reason, _) = sum(reasons.values()), (reasons.most_common(1) or [("", 0)])[0]
        pairs = reason == "preference_pair"
        checks.append(
            Check(
                "unread",
                kind,
                "serious" if lost else "ok",
                f"{lost} of {rows.counts[kind]} {kind} rows cannot be read" + (f": {listed(reasons)}" if lost else ""),
                float(lost),
                fix=(_PAIR_ADVICE if pairs else advice(reason)) if lost else "",
            )
        )
    return checks


def _too_few(rows: AuditedRows) -> list[Check]:
    checks = []
    for kind in KINDS[:2]:
        count = len(set(numbered([row.answer for row in rows.of(kind)]).tolist()))
        severity: Severity = "serious" if count < LEAST_ROWS else "warning" if count < FEW_ROWS else "ok"
        need = f"choosing a layer needs {LEAST_ROWS}, and is uncertain below {FEW_ROWS}"
        checks.append(
            Check(
                "number",
                kind,
                severity,
                f"{count} {kind} rows have an answer of their own" + (f": {need}" if severity != "ok" else ""),
                float(count),
                fix=f"add rows, {AGAIN}; or begin with those that ship: hf-safefilter reference starter --help"
                if severity != "ok"
                else "",
            )
        )
    number = len(set(numbered([row.request for row in rows.of("unsafe")]).tolist()))
    severity = "serious" if number < FOLDS else "warning" if number < LEAST_ROWS else "ok"
    sentence = f"the unsafe rows answer {number} requests"
    if severity != "ok":
        sentence += f": whole requests are held out in {FOLDS} folds"
    fix = f"add answers to other requests, {AGAIN}" if severity != "ok" else ""
    return [*checks, Check("number", "unsafe requests", severity, sentence, float(number), fix=fix)]


def _refusals(rows: AuditedRows) -> Check:
    """Refusals are known by their requests, which stand on the unsafe side too: words would know one language."""
    sides = [rows.of("unsafe"), rows.of("safe")]
    numbers = numbered([row.request for side in sides for row in side]).tolist()
    asked = set(numbers[: len(sides[0])])
    same = sum(number in asked for number in numbers[len(sides[0]) :])
    share = same / len(sides[1])
    severity: Severity = "serious" if not same else "warning" if share < 0.5 else "ok"
    sentence = f"{same} of {len(sides[1])} safe rows have the request of an unsafe row"
    if severity != "ok":
        sentence += ": where the requests differ, a score learns topics instead of refusals"
    fix = f"refuse the requests of the unsafe side, and pass other safe rows as --benign FILE, {AGAIN}"
    return Check("refusals", "safe", severity, sentence, share, fix=fix if severity != "ok" else "")


def _ordinary(rows: AuditedRows) -> Check:
    count = len(rows.of("benign"))
    few = count < LEAST_ROWS
    sentence = f"{count} ordinary rows" if count else "no ordinary rows"
    return Check(
        "ordinary rows",
        "benign",
        "warning" if few else "ok",
        f"{sentence}: what only sounds unlike a refusal is taken for harm" if few else sentence,
        float(count),
        fix=f"add --benign FILE with your own, or --benign starter for those that ship, {AGAIN}" if few else "",
    )


def _topic(unsafe: Sequence[AuditedRow]) -> Check:
    """By the column `category` if it tells rows apart, else by the words of the requests."""
    categories = Counter(row.category for row in unsafe if row.category)
    if len(categories) > 1:
        share, what = max(categories.values()) / len(unsafe), "are of one category"
    else:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        requests = dict.fromkeys(row.request.casefold() for row in unsafe)
        words = Counter(word for text in requests for word in set(_WORD.findall(text)) - ENGLISH_STOP_WORDS)
        share, what = max(words.values(), default=0) / len(requests), "have one word in common"
    narrow = share > _ONE_TOPIC
    sentence = f"{share:.0%} of the unsafe requests {what}"
    return Check(
        "topic",
        "unsafe",
        "warning" if narrow else "ok",
        f"{sentence}: harm of other topics may not be known again" if narrow else sentence,
        share,
        fix=f"add requests of other topics, {AGAIN}" if narrow else "",
    )


def _languages(rows: AuditedRows) -> Check:
    by_kind: dict[Kind, Counter[str]] = {
        kind: Counter(row.language for row in rows.of(kind) if row.language != UNKNOWN) for kind in KINDS
    }
    known = sorted(set().union(*by_kind.values()))
    shares = {
        kind: {language: counts[language] / counts.total() for language in known}
        for kind, counts in by_kind.items()
        if counts.total() >= LEAST_ROWS
    }
    unsafe = shares.pop("unsafe", None)
    gaps = {
        (kind, language): abs(unsafe[language] - other[language])
        for kind, other in shares.items()
        for language in known
        if unsafe is not None
    }
    (kind, _), most = max(gaps.items(), key=lambda item: item[1]) if gaps else (("", ""), 0.0)
    if most > _OWN_LANGUAGE:
        sentence = f"language alone tells unsafe rows from {kind} ones: the shares of one differ by {most:.0%}"
        return Check(
            "language", "all", "serious", sentence, most, fix=f"write all sides in the same languages, {AGAIN}"
        )
    if len(known) == 1:
        sentence = "all rows whose language is known are in one language: nothing shows how others are scored"
        return Check("language", "all", "note", sentence, 1.0, fix=f"add rows in the languages of your data, {AGAIN}")
    return Check("language", "all", "ok", f"{len(known)} languages, on all sides alike", float(len(known)))
