"""Options of a threshold that make no sense are refused before any row is read, wherever they are written."""

import pytest

from hf_safefilter.decide.threshold_options import checked_way
from hf_safefilter.decide.thresholds import threshold_for
from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.recipe import Recipe, SelectionRule

WRONG = [
    ({}, "given: none"),
    ({"drop_count": 1, "threshold": 0.5}, "given: drop_count, threshold"),
    ({"drop_fraction": 10}, "`drop_fraction=10"),
    ({"drop_fraction": 1.0}, "between 0 and 1"),
    ({"drop_count": 0}, "at least 1"),
    ({"threshold": float("nan")}, "not a number"),
    ({"drop_count": 1, "rule": "best_f1"}, "rule is used with label, not with drop_count"),
    ({"label": "label", "max_loss": 0.1}, "max_loss is used with known_good"),
    ({"label": "label", "rule": "tpr_at_fpr"}, "max_fpr"),
    ({"label": "label", "rule": "tpr_at_fpr", "max_fpr": 2.0}, "between 0 and 1"),
    ({"label": "label", "max_fpr": -0.1}, "between 0 and 1"),
    ({"label": "label", "rule": "best_f1", "max_fpr": 0.1}, "tpr_at_fpr, not with best_f1"),
    ({"known_good": "good.jsonl"}, "needs max_loss and confidence"),
    ({"known_good": "good.jsonl", "max_loss": 0.1, "confidence": 95.0}, "`confidence=95"),
]


@pytest.mark.parametrize(("options", "says"), WRONG, ids=lambda part: str(part)[:40])
def test_a_mistake_is_named_wherever_it_is_written(options, says):
    with pytest.raises(OptionError, match=says):
        checked_way(**options)
    with pytest.raises(OptionError, match=says):  # without rows: nothing was read for it
        threshold_for({}, "larf_score", **options)
    with pytest.raises(OptionError, match=says):
        SelectionRule.checked(**options)
    with pytest.raises(OptionError, match="select: .*" + says):
        Recipe.read({"data": {"license": "mit", "source": "s"}, "model": "toy", "select": options})


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"drop_fraction": 0.02}, "drop_fraction"),
        ({"drop_count": 1}, "drop_count"),
        ({"threshold": 0}, "threshold"),
        ({"label": "label", "max_fpr": 0.05}, "label"),
        ({"known_good": "good.jsonl", "max_loss": 0.05, "confidence": 0.95}, "known_good"),
    ],
)
def test_the_way_is_the_option_that_is_passed(options, way):
    assert checked_way(**options) == way


def test_one_row_that_was_scored_is_said_to_be_too_few_to_rank():
    with pytest.raises(Exception, match=r"1 row could be scored, and ranks need two\nfix: add rows") as error:
        threshold_for({"larf_score": [0.5]}, "larf_score", drop_count=1)
    assert "unscorable" not in str(error.value)  # it was scored


def test_the_name_of_a_method_is_taken_for_a_slip_for_its_scores():
    rows = {"larf_score": [0.1, 0.2], "larf_span": [0, 0]}
    with pytest.raises(MissingError, match="did you mean 'larf_score'"):
        threshold_for(rows, "larf", drop_count=1)
