"""Refusals that are added: for what was dropped, in the shape of the rows, and marked."""

import json
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.decide.additions import ADDED, Additions, RefusalsToAdd
from hf_safefilter.decide.refusals_to_add import diverse_refusals
from hf_safefilter.errors import DataError, OptionError

REFUSALS = tuple(
    {"prompt": f"{kind} {n}?", "response": f"No {kind} {n}.", "category": kind}
    for kind, count in (("fraud", 6), ("weapons", 6), ("privacy", 3))
    for n in range(count)
)
ASKED = [(row["prompt"], row["response"]) for row in REFUSALS[:2]]
WANTED = RefusalsToAdd(2, REFUSALS[:2], "a test", "mit")


def kinds(count, dropped=()):
    return Counter(row["category"] for row in diverse_refusals(count, REFUSALS, dropped))


def test_refusals_are_for_what_was_dropped():
    assert kinds(4, ["Fraud "] * 30 + ["weapons"] * 10 + ["cooking"] * 50) == {"fraud": 3, "weapons": 1}
    assert kinds(5, ["fraud"] * 3 + ["weapons"] * 3) in ({"fraud": 3, "weapons": 2}, {"fraud": 2, "weapons": 3})
    assert kinds(9, ["fraud"] * 9) == {"fraud": 6, "weapons": 2, "privacy": 1}  # fraud has no more
    assert kinds(6) == {"fraud": 2, "weapons": 2, "privacy": 2} == kinds(6, ["cooking"])
    chosen = diverse_refusals(15, REFUSALS, ["privacy"])
    assert len({row["prompt"] for row in chosen}) == 15


def test_more_refusals_than_there_are_is_an_error():
    with pytest.raises(DataError, match="15 refusals, fewer than 16"):
        diverse_refusals(16, REFUSALS)
    with pytest.raises(OptionError, match="count"):
        diverse_refusals(0, REFUSALS)


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAPES = {
    "prompt and response": {"prompt": "a", "response": "b"},
    "instruction, input and output": {"instruction": "a", "input": "", "output": "b", "id": 3},
    "question and answer": {"question": "a", "answer": "b"},
    "messages": {"messages": TURNS, "source": "x"},
    "weights": {"messages": [turn | {"weight": 1} for turn in TURNS]},
    "human and gpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "parts": {"messages": [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS]},
    "JSON": {"messages": json.dumps(TURNS)},
    "lists": {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}},
    "prompt and completion as turns": {"prompt": TURNS[:1], "completion": TURNS[1:]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_refusals_take_the_shape_of_the_rows(shape):
    rows = Dataset.from_list([SHAPES[shape]] * 3)
    added = Additions.choose(WANTED, rows, rows.select([]), rows.column_names)
    assert [[(turn.role, turn.content) for turn in row.messages] for row in as_conversations(added.rows)] == [
        [("user", prompt), ("assistant", answer)] for prompt, answer in ASKED
    ]
    whole = added.appended_to({"": rows})[""]
    assert whole[ADDED][:] == [None] * 3 + ["refusal"] * 2
    assert whole.select(range(3)).remove_columns(ADDED).to_list() == rows.to_list()
    assert {name: whole.features[name] for name in rows.column_names} == dict(rows.features)
    others = set(rows.column_names) - {"source", "id"}
    assert all(whole[3][name] is None for name in set(rows.column_names) - others)


def test_rows_of_a_shape_that_a_person_names():
    rows = Dataset.from_list([{"q": "a", "a": "b"}] * 3)
    added = Additions.choose(WANTED, rows, rows.select([]), ["q", "a"], {"prompt": "q", "response": "a"})
    assert list(zip(added.rows["q"], added.rows["a"], strict=True)) == ASKED


@pytest.mark.parametrize(
    "row", [{"text": "a b c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}, {"words": "a"}, {"prompt": "", "x": 1}]
)
def test_what_has_no_place_for_an_answer_gets_none(row):
    rows = Dataset.from_list([row] * 3)
    with pytest.raises(DataError, match="cannot be added to rows of this shape"):
        Additions.choose(WANTED, rows, rows.select([]), rows.column_names)


def test_the_split_train_gets_them_and_every_split_says_so():
    part = Dataset.from_list([{"prompt": "a", "response": "b", "x_score": 0.5}] * 3)
    kept = DatasetDict(test=Dataset.from_list(part.to_list() * 2), train=part)
    added = Additions.choose(WANTED, kept, kept, ["prompt", "response"])
    whole = DatasetDict(added.appended_to(kept))
    assert {name: len(rows) for name, rows in whole.items()} == {"test": 6, "train": 5}
    assert whole["train"].features == whole["test"].features and whole["train"]["x_score"][3] is None
    assert added.split == "train" and added.by_category == {"fraud": 2}
    assert ADDED not in part.column_names  # rows of the user are not changed


def test_a_column_of_that_name_and_no_rows_are_errors():
    rows = Dataset.from_list([{"prompt": "a", "response": "b", "added": "x"}])
    with pytest.raises(DataError, match="already have a column 'added'"):
        Additions.choose(WANTED, rows, rows, rows.column_names)
    with pytest.raises(DataError, match="no row is kept"):
        Additions.choose(WANTED, rows.remove_columns("added").select([]), rows, ["prompt", "response"])


def test_refusals_of_ones_own_need_a_licence_and_text(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in REFUSALS))
    with pytest.raises(DataError, match="licence of the refusals"):
        RefusalsToAdd.of(3, str(path))
    own = RefusalsToAdd.of(3, str(path), "mit")
    assert (len(own.rows), own.source, own.license) == (15, "own.jsonl", "mit")
    path.write_text('{"prompt": "a", "response": ""}\n')
    with pytest.raises(DataError, match="a prompt and a response in each row"):
        RefusalsToAdd.of(1, str(path), "mit")
    assert RefusalsToAdd.of(3).license == "cc0-1.0"
