"""A second reading differs by rounding: scores may, ranks of them follow exactly from what stands beside them."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter.columns import score_column
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.engine.local import add_ranks
from hf_safefilter.errors import PublishError
from hf_safefilter.publish.drop_reasons import NO_NUMBER, REACHED, reasons_of
from hf_safefilter.publish.rescoring import check_steps, random_samples, read_columns, tolerance_of
from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class Rounded(Step):
    """A score that rounds otherwise in batches of another size, as matrix products do."""

    name: str
    rounding: float
    algorithm: int = field(default=1, init=False)

    def produces(self):
        return (score_column(self.name),)

    def compute(self, batch, rank):
        values = np.array([int(cell) for cell in batch.cells("response")], dtype=np.float64)
        return {self.produces()[0]: (values + self.rounding * (batch.n % 7)).astype(np.float32)}


def ranked(rounding):
    steps = [Rounded("first", rounding), Rounded("second", 0.0)]
    rows = Dataset.from_dict({"prompt": ["?"] * 40, "response": [str(n // 2) for n in range(40)]})
    for step in steps:
        rows = rows.map(step, batched=True, batch_size=40)
    rows, rank = add_ranks(rows, ["first_score", "second_score"], "largest_rank")
    return rows, [*steps, rank]


def checked(rows, steps, column="largest_rank_score"):
    return check_steps(rows, random_samples(rows, 8), steps, column, 8)


def test_rounding_that_moves_ranks_by_whole_rows_is_no_other_score():
    rows, steps = ranked(-1e-3)
    check = checked(rows, steps)
    assert 0 < check.largest_difference <= check.tolerance == tolerance_of(np.array(rows["first_score"]))
    sample = rows.select(range(8)).remove_columns([c for c in rows.column_names if c.endswith(("_score", "_by"))])
    again = sample
    for step in steps:
        again = again.map(step, batched=True)
    moved = np.abs(np.array(again["largest_rank_score"]) - np.array(rows["largest_rank_score"][:8]))
    assert moved.max() >= 1 / 40, "so the ranks themselves could not have been compared"


def test_scores_that_are_others_are_named():
    rows, steps = ranked(3.0)
    with pytest.raises(PublishError, match="'first_score'"):
        checked(rows, steps)
    assert checked(rows, steps, "second_score").largest_difference == 0


def test_a_rank_that_does_not_follow_from_its_scores_is_refused_wherever_it_stands():
    rows, steps = ranked(1e-3)
    ranks = np.array(rows["largest_rank_score"], np.float32)
    ranks[17] -= np.float32(0.001)
    changed = rows.remove_columns("largest_rank_score").add_column("largest_rank_score", ranks)
    with pytest.raises(PublishError, match="does not follow from first_score, second_score"):
        checked(changed, steps)


def test_what_is_read_of_a_score_is_itself_and_of_ranks_what_they_combine():
    _, steps = ranked(0.0)
    assert read_columns("first_score", steps) == ("first_score",)
    assert read_columns("largest_rank_score", steps) == ("first_score", "second_score")
    with pytest.raises(PublishError, match="none of the given steps"):
        read_columns("third_score", steps)


def test_a_score_may_differ_by_a_fiftieth_of_a_deviation_and_a_thousandth_at_least():
    scores = np.array([-3.0, 3.0, np.nan, -3.0, 3.0])
    assert tolerance_of(scores) == pytest.approx(0.06)
    assert tolerance_of(scores / 1000) == tolerance_of(np.full(3, np.nan)) == 1e-3


def test_a_row_that_is_dropped_has_the_reason_of_the_method_that_decides():
    """A method that reads the text itself may score what the embedder could not read, and the reverse."""
    rows = Dataset.from_dict(
        {
            "guard_score": [0.9, np.nan, 0.1, np.nan],
            "guard_unscored": ["", "too_long", "", ""],
            "unscorable": ["no_prompt", "", "no_prompt", "empty_row"],
        }
    )
    is_safe = IsSafe("guard_score", 0.5)
    assert reasons_of(rows, is_safe) == [REACHED, "unscorable: too_long", "", NO_NUMBER]
    others = rows.select([1, 3]).rename_columns({"guard_score": "larf_score", "guard_unscored": "beside"})
    assert reasons_of(others, IsSafe("larf_score", 0.5)) == [NO_NUMBER, "unscorable: empty_row"]
