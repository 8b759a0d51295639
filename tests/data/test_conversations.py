import pytest
from datasets import Dataset

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import (
    Conversation,
    as_conversations,
    conversations,
    prompt_of,
    response_of,
    row_id,
    shape_of,
)
from hf_safefilter.errors import DataError, MissingError, OptionError

ASKED, SAID = "Who is Zelda?", "A princess."
PLAIN = Conversation((("user", ASKED), ("assistant", SAID)))
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": ASKED, "response": SAID},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"instruction": ASKED, "output": SAID},
        {"instruction": ASKED, "input": "", "output": SAID},
        {"instruction": ASKED, "context": "", "response": SAID},
        {"question": ASKED, "answer": SAID},
        {"prompt": ASKED, "chosen": SAID, "rejected": "No idea."},
        {"prompt": TURNS[:1], "chosen": TURNS, "rejected": TURNS},
        {"prompt": ASKED, "chosen": TURNS, "rejected": TURNS},
        {"chosen": TURNS, "rejected": TURNS},
        {"messages": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS]},
        {"messages": [*TURNS, {"role": "user", "content": "Thanks!"}]},
    ],
)
def test_every_known_shape_says_the_same_and_has_the_same_id(row):
    found = as_conversations([row])
    assert found == [PLAIN]
    assert row_id(found[0]) == "4e8b9201f49043294b64bec232069fe0" == row_id(PLAIN)
    assert conversations(Batch(row)) == [PLAIN]
    assert conversations(Batch(Dataset.from_list([row, row]).with_format("arrow")[:])) == [PLAIN, PLAIN]


def test_inputs_systems_and_earlier_turns_are_kept():
    row = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
    assert as_conversations([row])[0].messages == (("user", "Add.\n1 + 1"), ("assistant", "2"))
    turns = [{"role": "system", "content": "Be brief."}, *TURNS, {"role": "user", "content": "And Link?"}]
    (one,) = as_conversations([{"messages": [*turns, {"role": "assistant", "content": "A hero."}]}])
    assert [role for role, _ in one.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert (prompt_of(one), response_of(one)) == ("And Link?", "A hero.")
    (one,) = as_conversations([{"system": "Be brief.", "prompt": ASKED, "response": SAID}])
    assert one.messages[0] == ("system", "Be brief.")


def test_columns_can_be_named():
    row = {"q": ASKED, "a": SAID, "prompt": "something else"}
    assert as_conversations([row], {"prompt": "q", "response": "a"}) == [PLAIN]
    assert as_conversations([{"talk": TURNS}], {"messages": "talk"}) == [PLAIN]
    assert as_conversations([{"body": "Once."}], {"text": "body"})[0].messages == (("text", "Once."),)
    with pytest.raises(MissingError, match="'q', which is not there"):
        as_conversations([{"x": 1}], {"prompt": "q", "response": "x"})
    with pytest.raises(OptionError):
        as_conversations([row], {"prompt": "q"})


def test_an_unknown_shape_lists_the_columns_and_the_way_out():
    with pytest.raises(DataError, match="found: haiku, season") as error:
        shape_of(["haiku", "season"])
    assert "columns=" in str(error.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " ", "response": SAID}, "empty_prompt"),
        ({"prompt": ASKED, "response": "\n"}, "empty_response"),
        ({"prompt": None, "response": SAID}, "not_text"),
        ({"prompt": ASKED, "response": 7}, "not_text"),
        ({"messages": [{"role": "user<|end|>", "content": "x"}, TURNS[1]]}, "unknown_role"),
        ({"messages": TURNS[:1]}, "no_assistant_turn"),
        ({"messages": TURNS[1:]}, "no_user_turn"),
        ({"messages": []}, "no_assistant_turn"),
        ({"messages": None}, "not_text"),
        ({"messages": ["hi"]}, "not_text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TURNS[1]]}, "not_text"),
        ({"text": "  "}, "empty_response"),
        ({"text": 3}, "not_text"),
    ],
)
def test_what_cannot_be_scored_has_a_reason_and_an_id(row, reason):
    (one,) = as_conversations([row])
    assert one.reason == reason
    assert len(row_id(one)) == 32


def test_ids_differ_where_words_or_roles_do():
    ids = {
        row_id(Conversation(messages))
        for messages in [
            (("user", "a"), ("assistant", "b")),
            (("user", "a"), ("assistant", "b ")),
            (("user", "ab"), ("assistant", "")),
            (("system", "a"), ("assistant", "b")),
            (("user", "a"), ("user", "b")),
            (("user", 'a","b'), ("assistant", "b")),
            (("user", "\ud800"), ("assistant", "b")),
        ]
    }
    assert len(ids) == 7


def test_rows_of_unlike_columns_are_refused_by_number():
    with pytest.raises(DataError, match="row 1"):
        as_conversations([{"prompt": ASKED, "response": SAID}, {"text": "x"}])
