"""How rows are selected: the threshold, what becomes of dangerous rows, and what people add to it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hf_safefilter.decide.actions import Action
from hf_safefilter.decide.threshold_options import checked_way
from hf_safefilter.recipe.strict_part import Part

OF_THE_REST = ("decisions", "name_reviewers", "add_refusals", "refusals", "refusals_license")
"""Options of a selection that have nothing to do with its threshold."""


class SelectionRule(Part):
    """How the threshold is found, in exactly one way."""

    by: str | None = None
    """Name of the score to decide by; if left out, the only one; of several that look for one danger, rank_average;
    of several that look for unlike dangers, largest_deviation. For pair_shift, and for action: mask, the first one."""
    on: Literal["score", "pair_shift"] = "score"
    """What of it decides: score, or, for preference pairs, pair_shift: the chosen answer's minus the rejected one's."""
    action: Action = "drop"
    """What becomes of dangerous rows: drop; switch (exchange chosen and rejected); mask (answers get weight 0)."""
    drop_fraction: float | None = None
    """Drop this share of the scored rows."""
    drop_count: int | None = None
    """Drop this number of rows."""
    threshold: float | None = None
    """Drop rows that score this or more."""
    label: str | None = None
    """Column of labels for a labelled rule."""
    unsafe: str | int | bool = "unsafe"
    """Value in the column of labels that means unsafe."""
    rule: Literal["best_f1", "tpr_at_fpr"] | None = None
    """The labelled rule."""
    max_fpr: float | None = None
    """Largest false-positive rate for tpr_at_fpr."""
    known_good: str | None = None
    """File or Hub id of rows known to be good, for a threshold with a guarantee."""
    max_loss: float | None = None
    """Largest share of such rows that may be lost."""
    confidence: float | None = None
    """Confidence that this share is not exceeded."""
    decisions: str | None = None
    """File of what people decided on single rows, which goes before the score; see hf-safefilter review."""
    name_reviewers: bool = False
    """Whether the card names these people, and not their number alone."""
    add_refusals: int | None = Field(default=None, ge=1)
    """Add this many refusals of what was dropped to the kept rows, marked by the column added."""
    refusals: str | None = None
    """File or Hub id of rows to choose them from; if left out, those of the starter set."""
    refusals_license: str | None = None
    """Licence of these rows."""

    @model_validator(mode="after")
    def _one_rule(self) -> SelectionRule:
        options = self.model_dump(exclude={"by", "on", "action", "unsafe", *OF_THE_REST})
        checked_way(**options)
        if self.add_refusals is None and (self.refusals is not None or self.refusals_license is not None):
            raise ValueError("refusals belongs to add_refusals: the number of refusals to add")
        if (self.action == "switch") > (self.on == "pair_shift"):
            raise ValueError("`action=switch` exchanges the sides of preference pairs, and goes by a pair shift")
        if self.action == "mask" and self.on != "score":
            raise ValueError("action: mask goes by the scores of answers; leave on: pair_shift out")
        return self
