"""Rows that are references too: each is compared with itself, so nothing can be measured on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.splits import column_names, count_rows, joined, parts_of, splits_of
from hf_safefilter.errors import DataError
from hf_safefilter.references import SIDES, references

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)


def warn_of_overlap(ds: Dataset | DatasetDict, steps: Sequence[Step]) -> None:
    """Log a warning if rows stand among the references that one of `steps` compares with."""
    sides = _sides(steps)
    hits = [sides[row_id] for row_id in _ids(ds) if row_id in sides]
    if hits:
        each = " and ".join(f"{hits.count(side)} among the {side} ones" for side in SIDES if side in hits)
        logger.warning(
            "%d of %d rows are references too, %s: such a row is compared with itself, and nothing is measured on it. "
            "Leave these rows out of the references, or out of the rows",
            len(hits),
            count_rows(ds),
            each,
        )


def apart_from_references(ds: Dataset | DatasetDict, steps: Sequence[Step]) -> Dataset | DatasetDict:
    """The rows that are not references of one of `steps`: those on which its score can be measured.

    Args:
        ds: Scored rows; without a column `row_id`, nothing is known of their references.
        steps: The steps that filled their columns.

    Raises:
        DataError: All rows are references.
    """
    sides = _sides(steps)
    if not sides or not any(row_id in sides for row_id in _ids(ds)):
        return ds
    kept: dict[str, Any] = {}
    for name, part in splits_of(ds).items():
        rows = [place for place, row_id in enumerate(_ids(part)) if row_id not in sides]
        if rows:
            kept[name] = part.select(rows)
    if not kept:
        raise DataError(
            "all rows are references too, so nothing can be measured on them",
            fix="measure on other rows, or build references of others: hf-safefilter reference build --help",
        )
    return joined(kept)


def references_of(steps: Sequence[Step]) -> list[ReferenceIndex]:
    """The references that the steps compare with, or were fitted to."""
    return [
        references(digest) for digest in dict.fromkeys(getattr(step, "references", None) for step in steps) if digest
    ]


def _sides(steps: Sequence[Step]) -> dict[str, str]:
    """Row id -> side, of all references that the steps compare with."""
    return {row.row_id: side for index in references_of(steps) for side in SIDES for row in index.rows(side)}


def _ids(ds: Dataset | DatasetDict) -> list[str]:
    known = [part for part in parts_of(ds) if ROW_ID in column_names(part) and len(part)]
    return [row_id for part in known for row_id in part.with_format("arrow")[:][ROW_ID].to_pylist()]
