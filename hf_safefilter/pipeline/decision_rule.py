"""The threshold that the `select` part of a recipe states."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.data.splits import count_rows
from hf_safefilter.decide.thresholds import threshold_for
from hf_safefilter.engine.local import score_rows
from hf_safefilter.recipe import OF_THE_REST

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.thresholds import Threshold
    from hf_safefilter.recipe import SelectionRule
    from hf_safefilter.step import Step


def decide_threshold(
    scored: Dataset | DatasetDict, column: str, rule: SelectionRule, steps: Sequence[Step]
) -> Threshold:
    """The threshold that `rule` states; rows known to be good are scored by the same `steps` first."""
    options = options_of(rule)
    if rule.known_good is not None:
        loaded = load_rows(rule.known_good)
        good = loaded.rows
        for step in steps:
            good = score_rows(good, step)
        loaded.require_unchanged()
        options["known_good"] = _measurable(good, steps)
    return threshold_for(scored, column, **options)


def _measurable(good: Any, steps: Sequence[Step]) -> Dataset | DatasetDict:
    """Rows known to be good without those that are references: compared with itself, such a row is like no other."""
    from hf_safefilter.decide.overlap import apart_from_references

    apart = apart_from_references(good, steps)
    if left_out := count_rows(good) - count_rows(apart):
        logger.warning(
            "%d of %d rows known to be good are references too, and say nothing of other rows: they are left out",
            left_out,
            count_rows(good),
        )
    return apart


def options_of(rule: SelectionRule) -> dict[str, Any]:
    """The options of `threshold_for` in a rule, as plain values; rows known to be good are named only."""
    options = rule.model_dump(exclude_none=True, exclude={"by", "on", "action", *OF_THE_REST})
    if rule.label is None:
        options.pop("unsafe")
    return options
