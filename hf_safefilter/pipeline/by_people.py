"""What people add to a selection: their decisions on single rows, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_safefilter.data.splits import parts_of
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.decide.additions import Additions, RefusalsToAdd
    from hf_safefilter.decide.row_decisions import RowDecisions
    from hf_safefilter.decide.select import Split
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

    def additions(self, parts: Split, steps: Sequence[Step]) -> Additions | None:
        """The rows that are added to the kept ones."""
        from hf_safefilter.decide.additions import Additions

        if self.refusals is None:
            return None
        filled = {name for step in steps for name in step.produces()}
        own = {name for part in parts_of(parts.kept) for name in part.column_names} - filled
        columns = next((step.mapping for step in steps if isinstance(step, EmbedLayers)), None)
        return Additions.choose(self.refusals, parts.kept, parts.dropped, own, columns)
