"""The decision on scored rows: the one that `select` has written, or one that is made from a command's own options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import PAIR_SHIFT, SCORE_SUFFIX
from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.saved.saved_rows import Saved

DECIDING = (SCORE_SUFFIX, PAIR_SHIFT)
"""Endings of the columns by which rows are decided."""


def decision_in(folder: Path, by: str | None, ways: dict[str, Any], trust_vectors: bool) -> tuple[Saved, IsSafe]:
    """The scored rows and the decision, which select has written or which is made here."""
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.pipeline.decision_rule import decide_threshold
    from hf_safefilter.recipe import SelectionRule
    from hf_safefilter.saved.decision import DECISION, read_decision
    from hf_safefilter.saved.saved_rows import load_rows_with_steps

    rule = {name: value for name, value in ways.items() if value is not None}
    if (folder / DECISION).is_file():
        if by is not None or rule:
            raise OptionError(f"{folder} already holds a decision", fix="leave out `by=...` and the threshold")
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
    require_filled(saved, by)
    return saved, IsSafe(by, decide_threshold(saved.rows, by, selection, saved.steps))


def require_filled(saved: Saved, column: str) -> None:
    """Raise unless a step of this program has filled a column: what came with the rows decides nothing.

    Raises:
        DataError: None has.
    """
    filled = sorted({name for step in saved.steps for name in step.produces() if name.endswith(DECIDING)})
    if column not in filled:
        raise DataError(
            f"no step of this program has filled the column {column!r}",
            found=", ".join(filled) or "no scores",
            fix="score the rows, or name one of these: hf-safefilter score --help",
        )
