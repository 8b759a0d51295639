"""What people add to a selection: their decisions on single rows, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.splits import parts_of
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.engine.local import score_rows
from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.additions import Additions, RefusalsToAdd
    from hf_safefilter.decide.row_decisions import RowDecisions
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.recipe import Recipe
    from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class ByPeople:
    """What a recipe names of it, read before the rows are.

    Attributes:
        decisions: Decisions on single rows; None: the score decides alone.
        refusals: Refusals to add; None: none are.
    """

    decisions: RowDecisions | None
    refusals: RefusalsToAdd | None

    @classmethod
    def of(cls, recipe: Recipe, *, streamed: bool) -> ByPeople:
        """What the recipe names.

        Args:
            recipe: The recipe.
            streamed: Whether the rows are not stored.

        Raises:
            SafefilterError: A file is not there or holds something else, or a stream cannot be changed so.
        """
        from hf_safefilter.decide.additions import RefusalsToAdd
        from hf_safefilter.decide.row_decisions import RowDecisions

        rule = recipe.select
        decisions = None if rule.decisions is None else RowDecisions.read(rule.decisions)
        if streamed and decisions is not None and decisions.masks_turns:
            raise OptionError(
                "turns of a stream cannot be masked by decisions of people",
                fix="leave out data.streaming, or drop them",
            )
        if rule.add_refusals is None:
            return cls(decisions, None)
        if streamed:
            raise OptionError("no refusals can be added to a stream", fix="leave out add_refusals or data.streaming")
        return cls(decisions, RefusalsToAdd.of(rule.add_refusals, rule.refusals, rule.refusals_license))


def choose_additions(
    wanted: RefusalsToAdd | None, scored: Dataset | DatasetDict, is_safe: IsSafe, steps: Sequence[Step]
) -> Additions | None:
    """The refusals that are added to the rows that a decision keeps.

    Args:
        wanted: The refusals to choose from; None: none are added.
        scored: The scored rows.
        is_safe: The decision on them.
        steps: The steps that filled their columns; refusals of others are read and scored by them too.

    Raises:
        DataError: They cannot be chosen, or one could not be scored or scores like the rows that are dropped.
    """
    from hf_safefilter.decide.additions import Additions
    from hf_safefilter.decide.select import split

    if wanted is None:
        return None
    parts = split(scored, is_safe)
    filled = {name for step in steps for name in step.produces()}
    own = {name for part in parts_of(parts.kept) for name in part.column_names} - filled
    columns = next((step.mapping for step in steps if isinstance(step, EmbedLayers)), None)
    additions = Additions.choose(wanted, parts.kept, parts.dropped, own, columns)
    if not wanted.ours:
        _require_safe(additions, is_safe, steps)
    return additions


def _require_safe(additions: Additions, is_safe: IsSafe, steps: Sequence[Step]) -> None:
    from hf_safefilter.decide.additions import ADDED

    rows = additions.rows.remove_columns(ADDED)
    for step in steps:
        rows = score_rows(rows, step)
    safe = is_safe.mask_by_score(Batch(rows.with_format("arrow")[:]))
    if not safe.all():
        raise DataError(
            f"{int((~safe).sum())} of {len(safe)} refusals could not be scored, or score like dropped rows",
            found=f"the first is chosen number {int((~safe).argmax()) + 1}, from {additions.source}",
            fix="take such rows out of the refusals",
        )
