"""What people decided on single rows goes before the score, in every way of selecting rows."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.row_decisions import RowDecisions
from hf_safefilter.decide.select import IsSafe, split
from hf_safefilter.errors import DataError, OptionError

SCORES = [0.1, 0.9, float("nan"), 0.2, 0.8, 0.3]
NAMES = "abcdef"
KEPT_BY_SCORE = "adf"


def conversation(name):
    turns = [("user", f"{name}?"), ("assistant", f"{name}."), ("user", "more"), ("assistant", f"more {name}.")]
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture
def rows():
    return Dataset.from_dict(
        {"messages": list(map(conversation, NAMES)), ROW_ID: list(NAMES), "test_score": np.float32(SCORES)}
    )


def is_safe(rulings, **options):
    decisions = RowDecisions(tuple((row, word, tuple(turns)) for row, word, *turns in rulings))
    return IsSafe("test_score", 0.5, decisions=decisions, **options)


@pytest.mark.parametrize(
    ("rulings", "kept"),
    [
        ([], KEPT_BY_SCORE), ([("b", "keep")], "abdf"), ([("c", "keep")], "acdf"), ([("a", "drop")], "df"),
        ([("a", "keep"), ("b", "drop"), ("x", "keep")], KEPT_BY_SCORE),
    ],
)  # fmt: skip
def test_filter_and_split_keep_the_same_rows(rows, rulings, kept):
    decision = is_safe(rulings)
    batched, single = rows.filter(decision, batched=True), rows.filter(decision)
    parts = split(DatasetDict({"train": rows}), decision)
    assert "".join(batched[ROW_ID]) == "".join(single[ROW_ID]) == "".join(parts.kept["train"][ROW_ID]) == kept
    assert sorted(parts.dropped["train"][ROW_ID][:]) == sorted(set(NAMES) - set(kept))
    assert "".join(np.array(list(NAMES))[decision.kept(rows.with_format("arrow")[:])]) == kept


def test_rows_without_ids_are_known_by_their_text(rows):
    ids = [row_id(turns) for turns in as_conversations(rows)]
    bare = rows.remove_columns(ROW_ID)
    decision = is_safe([(ids[1], "keep"), (ids[0], "drop")])
    assert split(bare, decision).kept["messages"][:] == [conversation(name) for name in "bdf"]
    assert ROW_ID not in decision.read_columns(bare.column_names) and "messages" in decision.read_columns(
        bare.column_names
    )


def test_turns_that_a_person_masks_have_weight_zero(rows):
    decision = is_safe([("b", "mask", 3), ("a", "mask", 1), ("d", "mask", 1, 3), ("f", "keep")])
    kept = split(rows, decision).kept
    assert "".join(kept[ROW_ID]) == "abf"  # of d nothing would be left
    weights = {row[ROW_ID]: [turn["weight"] for turn in row["messages"]] for row in kept}
    assert weights == {"a": [None, 0, None, None], "b": [None, None, None, 0], "f": [None] * 4}
    with pytest.raises(OptionError, match="a filter cannot mask rows"):
        rows.filter(decision, batched=True)


def test_a_turn_that_is_not_there_is_not_masked_in_another_row(rows):
    with pytest.raises(DataError, match="turn 4 is to be masked in a row of 4 turns"):
        split(rows, is_safe([("a", "mask", 4)]))


def test_sides_are_not_switched_against_a_decision():
    pairs = Dataset.from_dict(
        {"chosen": [f"c{n}" for n in NAMES], "rejected": [f"r{n}" for n in NAMES], ROW_ID: list(NAMES),
         "test_score": np.float32(SCORES)}
    )  # fmt: skip
    decision = is_safe([("b", "keep"), ("c", "keep"), ("d", "drop")], action="switch")
    parts = split(pairs, decision)
    assert parts.kept["chosen"][:] == ["ca", "cb", "cc", "re", "cf"] and parts.dropped[ROW_ID][:] == ["d"]
    assert decision.kept(pairs.with_format("arrow")[:]).tolist() == [True, True, True, False, True, True]
    with pytest.raises(OptionError, match="no turns to mask"):
        is_safe([("a", "mask", 1)], action="switch")


def test_other_decisions_are_another_selection():
    one, same, other = is_safe([("a", "drop")]), is_safe([("a", "drop")]), is_safe([("a", "keep")])
    assert Hasher.hash(one) == Hasher.hash(same) != Hasher.hash(other) != Hasher.hash(IsSafe("test_score", 0.5))
    assert one == same != other and IsSafe.from_json(one.to_json()) == one
    assert "keep" not in repr(other)  # the digest says which
