"""`audit_references` and `audit_index`: everything that is looked at, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_safefilter.references.audit.audited_rows import AuditedRows, Kind, read_rows, rows_of
from hf_safefilter.references.audit.checks_made import Audit
from hf_safefilter.references.audit.form import checks_of_form
from hf_safefilter.references.audit.makeup import checks_of_makeup
from hf_safefilter.references.audit.repeats import checks_of_repeats

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.references import ReferenceIndex


def audit_references(
    unsafe: Dataset | Iterable[Mapping[str, Any]],
    safe: Dataset | Iterable[Mapping[str, Any]],
    benign: Dataset | Iterable[Mapping[str, Any]] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
) -> Audit:
    """Look for what is wrong with reference rows, before a model is loaded.

    Whether the sides can be told apart by length, layout, punctuation or opening words alone (AUROC with a 95 %
    interval over requests; classifiers held out by request); rows said twice or nearly twice, on one side or both; too
    few rows or requests; refusals or ordinary rows that are missing; one topic, by the column `category` or the words
    of the requests; one language, by the column `language` or small words; and rows that cannot be read.

    Args:
        unsafe: Harmful requests with answers, in any known row shape.
        safe: The same requests with refusals.
        benign: Ordinary requests answered.
        columns: Where things stand, for rows of no known shape.

    Raises:
        DataError: Columns of no known shape.
    """
    given: dict[Kind, Iterable[Mapping[str, Any]]] = {"unsafe": unsafe, "safe": safe}
    if benign is not None:
        given["benign"] = benign
    return _audit(read_rows(given, columns))


def audit_index(index: ReferenceIndex) -> Audit:
    """The same for the rows of references that were built; they have no categories, and languages by words alone."""
    return _audit(rows_of(index))


def _audit(rows: AuditedRows) -> Audit:
    return Audit.of(rows.counts, [*checks_of_makeup(rows), *checks_of_form(rows), *checks_of_repeats(rows)])
