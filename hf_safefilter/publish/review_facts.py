"""What people decided on single rows, as a card states it and as a stranger can check it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.decide.decision_log import DROP, KEEP, MASK
from hf_safefilter.decide.row_decisions import RowDecisions
from hf_safefilter.errors import DataError, IntegrityError
from hf_safefilter.publish.provenance import Provenance, Review

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.decide.select import IsSafe

RULINGS = "decisions.json"


def review_of(parts: Mapping[str, Dataset], is_safe: IsSafe, *, name_reviewers: bool = False) -> Review | None:
    """How people overruled the score; None if nobody has decided on any row.

    Args:
        parts: Split name -> scored rows.
        is_safe: The decision.
        name_reviewers: Whether the people are named.

    Raises:
        DataError: The decisions are on none of these rows.
    """
    decisions = is_safe.decisions
    if not isinstance(decisions, RowDecisions):
        return None
    rows = dict.fromkeys(("decided", "kept", "unscored", "dropped", "masked"), 0)
    for part in parts.values():
        batch = decision_batch(part, is_safe)
        ruled, by_score = is_safe.rulings(batch), is_safe.mask_by_score(batch)
        rows["decided"] += int((ruled != "").sum())
        rows["kept"] += int(((ruled == KEEP) & ~by_score).sum())
        unscored = ~np.isfinite(batch.numbers(is_safe.column))
        rows["unscored"] += int(((ruled == KEEP) & unscored).sum())
        rows["dropped"] += int(((ruled == DROP) & by_score).sum())
        rows["masked"] += int((ruled == MASK).sum())
    if not rows["decided"]:
        raise DataError(
            "people have decided on none of these rows",
            found=f"{len(decisions)} decisions, on other row ids",
            fix="name the decisions on these rows",
        )
    return Review(
        sha256=decisions.sha256,
        **rows,
        reviewers=len(decisions.reviewers),
        names=list(decisions.reviewers) if name_reviewers else [],
        **asdict(decisions.agreement),
    )


def kept_as_they_are(part: Dataset, is_safe: IsSafe) -> int:
    """Number of rows that the decision keeps unchanged."""
    return int(is_safe.mask(decision_batch(part, is_safe)).sum())


def decision_batch(part: Dataset, is_safe: IsSafe) -> Batch:
    """The columns of a split that the decision depends on."""
    names = is_safe.read_columns(part.column_names)
    return Batch(part.select_columns(names).with_format("arrow")[:] if len(part) else {name: [] for name in names})


def write_rulings(folder: Path, is_safe: IsSafe) -> None:
    """Write what was decided on which row, without names and notes, if anybody has decided."""
    if isinstance(is_safe.decisions, RowDecisions):
        rulings = [[row, ruling, list(turns)] for row, ruling, turns in is_safe.decisions.rulings]
        (folder / RULINGS).write_text(json.dumps(rulings, indent=0) + "\n", encoding="utf-8")


def read_rulings(folder: Path, provenance: Provenance) -> RowDecisions | None:
    """What `write_rulings` has written; None where the record states that nobody has decided.

    Raises:
        IntegrityError: It is not what the record states.
    """
    path, review = folder / RULINGS, provenance.review
    if review is None:
        if path.exists():
            raise IntegrityError(f"{RULINGS} is there, and the record states no decisions of people")
        return None
    try:
        rulings = [(row, ruling, tuple(turns)) for row, ruling, turns in json.loads(path.read_text(encoding="utf-8"))]
        decisions = RowDecisions(tuple(rulings))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{RULINGS} is missing or damaged") from error
    if decisions.sha256 != review.sha256:
        raise IntegrityError(f"{RULINGS} does not hold the decisions that the record states")
    return decisions
