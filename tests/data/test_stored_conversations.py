"""What is stored of a conversation is all of it, in ASCII."""

import pytest

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.stored_conversations import from_json, to_json

TURNS = [{"role": "user", "content": "Qué?"}, {"role": "assistant", "content": "Nada\ud800."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"text": "Once."},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS]},
        {"messages": TURNS, "tools": [{"name": "x"}], "chat_template_kwargs": {"a": 1}},
        {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [{"name": "x", "arguments": {"b": 1, "a": 2}}]}]},
    ],
)
def test_a_conversation_comes_back_as_it_was(row):
    (one,) = as_conversations([row])
    stored = to_json(one)
    assert stored.isascii() and from_json(stored) == one and row_id(from_json(stored)) == row_id(one)


def test_text_that_may_go_unread_stays_part_of_the_id():
    (one,) = as_conversations([{"prompt": "a", "response": "b", "text": "more"}], {"ignore": "text"})
    assert one.unread and row_id(from_json(to_json(one))) == row_id(one)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"messages": 5}', '{"messages": [{"role": "user"}]}'])
def test_what_is_none_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        from_json(text)
