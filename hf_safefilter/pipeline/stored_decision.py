"""The decision on scored rows: the one that `select` has written, or one that is made from a command's own options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.checks import suggesting
from hf_safefilter.columns import PAIR_SHIFT, SCORE_SUFFIX, score_column
from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.saved.saved_rows import Saved

DECIDING = (SCORE_SUFFIX, PAIR_SHIFT)
"""Endings of the columns by which rows are decided."""


def decision_in(
    folder: Path, by: str | None, ways: dict[str, Any], trust_vectors: bool, decisions: Path | None = None
) -> tuple[Saved, IsSafe]:
    """The scored rows and the decision, which select has written or which is made here, with what people decided."""
    from hf_safefilter.decide.row_decisions import RowDecisions
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.pipeline.decision_rule import decide_threshold
    from hf_safefilter.recipe import SelectionRule
    from hf_safefilter.saved.decision import DECISION, read_decision
    from hf_safefilter.saved.saved_rows import load_rows_with_steps

    rule = {name: value for name, value in ways.items() if value is not None}
    if (folder / DECISION).is_file():
        if by is not None or rule or decisions is not None:
            raise OptionError(
                f"{folder} already holds a decision", fix="leave out `by=...`, the threshold and `decisions=...`"
            )
        decision = read_decision(folder, trust_vectors=trust_vectors)
        return decision.saved, decision.is_safe
    selection = SelectionRule.checked(**rule) if by is not None or rule else None
    saved = load_rows_with_steps(folder, trust_vectors=trust_vectors)
    if by is None or selection is None:
        scores = sorted({name for step in saved.steps for name in step.produces() if name.endswith("_score")})
        raise OptionError(
            "the score to decide by is not named",
            found=", ".join(scores) or "no scores",
            fix="name it, e.g. `by=larf_score`",
        )
    by = deciding_column(saved, by)
    by_people = None if decisions is None else RowDecisions.read(decisions)
    columns = None if by_people is None else saved.mapping
    return saved, IsSafe(
        by, decide_threshold(saved.rows, by, selection, saved.steps), columns=columns, decisions=by_people
    )


def deciding_column(saved: Saved, by: str) -> str:
    """The column to decide by: the one of that name, or the one of the scores of a method of that name.

    Raises:
        DataError: No step of this program has filled it: what came with the rows decides nothing.
    """
    filled = sorted({name for step in saved.steps for name in step.produces() if name.endswith(DECIDING)})
    if (column := next((name for name in (by, score_column(by)) if name in filled), None)) is None:
        methods = [name.removesuffix(SCORE_SUFFIX) for name in filled]
        raise DataError(
            f"no step of this program has filled the column {by!r}",
            found=", ".join(filled) or "no scores",
            fix=suggesting(by, [*filled, *methods], "score the rows, or name one of these: hf-safefilter score --help"),
        )
    return column
