"""What is asked: taken once, never what a model has seen."""

import pytest

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.prompts import prompts_in
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.effect.questions import Questions
from hf_safefilter.errors import DataError

ROWS = [{"prompt": f"How do I bake number {n}?", "response": "With flour."} for n in range(4)]


def test_prompts_come_from_any_rows_with_or_without_responses():
    assert prompts_in(["a b", "a b", "c"]) == ("a b", "c")
    assert prompts_in([{"prompt": "x"}, {"instruction": "y"}, {"question": "z", "answer": "!"}]) == ("x", "y", "z")
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "well"}]
    assert prompts_in([{"messages": turns}]) == ("first",)
    with pytest.raises(DataError, match="empty prompt"):
        prompts_in(["ok", "  "])
    with pytest.raises(DataError, match="no known shape"):
        prompts_in([{"cheese": "x"}])


def test_what_a_model_has_seen_is_left_out_and_counted():
    asked = Questions.of(["Do harm", "Do  HARM now", "Other"], ["Kill a process", "Other"], ROWS, "a test")
    seen_row = row_id(as_conversations(ROWS[1:2])[0])
    left, out = asked.without(["do harm NOW", "kill a  process"], [seen_row])
    assert left.harmful == ("Do harm", "Other")
    assert left.over_refusal == ("Other",)
    assert len(left.benign) == 3
    assert out == {"harmful": 1, "over_refusal": 1, "benign": 1}
    assert left.required(out) is left
    nothing, out = asked.without(["do harm", "do harm now", "OTHER"], [])
    with pytest.raises(DataError, match="no harmful questions"):
        nothing.required(out)


def test_the_sets_that_ship():
    toy = Questions.toy(10)
    assert toy.counts() == {"harmful": 10, "over_refusal": 10, "benign": 10}
    starter = Questions.starter(ROWS)
    assert starter.counts() == {"harmful": 220, "over_refusal": 110, "benign": 4}
    assert starter.first(5).counts() == {"harmful": 5, "over_refusal": 5, "benign": 4}
    other = starter.replaced(harmful=(["mine"], "my file"))
    assert other.harmful == ("mine",)
    assert other.source == f"{starter.source}; harmful: my file"
    assert other.over_refusal == starter.over_refusal


def test_unreadable_benign_rows_and_duplicates_are_not_asked():
    rows = [*ROWS, ROWS[0], {"prompt": "x", "response": ""}]
    assert Questions.of(["a"], ["b"], rows, "a test").counts()["benign"] == 4
