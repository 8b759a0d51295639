"""The id of a row: all that it says, and nothing else, in any shape and after any round trip."""

import hashlib
import json
import subprocess
import sys

import pytest
from datasets import Dataset

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, as_conversations, conversations
from hf_safefilter.data.messages import Message
from hf_safefilter.data.row_ids import row_id

TURNS = [{"role": "user", "content": "Who is Zelda?"}, {"role": "assistant", "content": "A princess."}]


def id_of(row, **options):
    (one,) = as_conversations([row], options or None)
    return row_id(one)


def call(name, arguments):
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def test_the_id_is_a_digest_of_canonical_json():
    """Whoever has the row can compute it with a line of any language."""
    assert id_of({"messages": TURNS}) == digest(
        '["hf_safefilter/row/2",["user","Who is Zelda?"],["assistant","A princess."]]'
    )
    pair = {"prompt": "é?", "chosen": "a", "rejected": "b", "tools": [{"b": 1, "a": None}]}
    assert id_of(pair) == digest(
        '["hf_safefilter/row/2",["user","é?"],["assistant","a"],'
        '{"rejected":[["user","é?"],["assistant","b"]],"tools":[{"b":1}]}]'
    )
    row = {"messages": [TURNS[0], {**TURNS[1], "weight": 0, "thinking": "Hm."}, *TURNS]}
    assert id_of(row) == digest(
        '["hf_safefilter/row/2",["user","Who is Zelda?"],["assistant","A princess.",{"thinking":"Hm."},0],'
        '["user","Who is Zelda?"],["assistant","A princess."]]'
    )


def test_ids_differ_where_words_or_roles_do():
    talks = [
        [("user", "a"), ("assistant", "b")],
        [("user", "a"), ("assistant", "b ")],
        [("user", "ab"), ("assistant", "")],
        [("system", "a"), ("assistant", "b")],
        [("user", "a"), ("user", "b")],
        [("user", 'a","b'), ("assistant", "b")],
        [("user", "\ud800"), ("assistant", "b")],
    ]
    assert len({row_id(Conversation(tuple(Message(*turn) for turn in talk))) for talk in talks}) == len(talks)


@pytest.mark.parametrize(
    "change",
    [
        {"tool_calls": call("wipe", {"path": "~"})},
        {"tool_calls": call("list", {"path": "/"})},
        {"tool_calls": None},
        {"reasoning_content": "First poison the well."},
        {"name": "Link"},
        {"content": ""},
        {"weight": 0},
    ],
)
def test_ids_differ_where_anything_else_that_is_said_does(change):
    answer = {"role": "assistant", "content": "Done.", "tool_calls": call("list", {"path": "~"}), "weight": 1}
    assert id_of({"messages": [TURNS[0], answer]}) != id_of({"messages": [TURNS[0], answer | change]})


def test_sides_tools_and_variables_are_part_of_the_id():
    base = {"prompt": "a", "chosen": "b", "rejected": "c"}
    tools = [{"type": "function", "function": {"name": "weather"}}]
    rows = [
        base,
        {"prompt": "a", "response": "b"},
        base | {"chosen": "c", "rejected": "b"},
        base | {"tools": tools},
        base | {"tools": "[]"},
        base | {"chat_template_kwargs": {"enable_thinking": True}},
    ]
    assert len({id_of(row) for row in rows}) == len(rows)
    assert id_of(base | {"tools": json.dumps(tools)}) == id_of(base | {"tools": tools})


def test_the_order_of_keys_and_keys_that_are_none_change_nothing():
    one = {"messages": [TURNS[0], {"role": "assistant", "tool_calls": call("add", {"a": 1, "b": [{"c": 2}]})}]}
    other = {
        "messages": [
            {"content": TURNS[0]["content"], "tool_calls": None, "role": "user", "name": None},
            {
                "tool_calls": [
                    {"function": {"arguments": {"b": [{"d": None, "c": 2}], "a": 1}, "name": "add"}, "type": "function"}
                ],
                "content": None,
                "role": "assistant",
            },
        ]
    }
    assert id_of(one) == id_of(other)


def test_tool_arguments_keep_their_ids_through_arrow():
    """Arrow gives every struct the keys of all others, filled with None."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {number}?"},
                {"role": "assistant", "content": "Let me see.", "tool_calls": call(name, arguments)},
                {"role": "tool", "content": "21"},
                {"role": "assistant", "content": "It is 21."},
            ]
        }
        for number, (name, arguments) in enumerate(
            [("weather", {"city": "Rome"}), ("add", {"a": 0, "b": 2}), ("clock", {}), ("find", {"in": {"depth": 3}})]
        )
    ]
    expected = [id_of(row) for row in rows]
    table = Dataset.from_list(rows)
    filled = table[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert set(filled) == {"city", "a", "b", "in"} and filled["city"] is None
    for seen in (table[:], table.with_format("arrow")[:]):
        assert [row_id(one) for one in conversations(Batch(seen))] == expected
    assert as_conversations(table) == as_conversations(rows), "and so do the words that the model reads"
    words = Dataset.from_list([rows[0], rows[2]])  # NumPy, torch and pandas have no missing integers
    for kind in ("numpy", "torch", "pandas"):
        found = conversations(Batch(words.with_format(kind)[:]))
        assert [row_id(one) for one in found] == [expected[0], expected[2]], kind


def test_the_id_is_the_same_in_every_process():
    code = (
        "from hf_safefilter.data.conversations import as_conversations\n"
        "from hf_safefilter.data.row_ids import row_id\n"
        f"print(row_id(as_conversations([{{'messages': {TURNS!r}, 'tools': {{1, }}}}])[0]))"
    )
    said = {subprocess.check_output([sys.executable, "-c", code], text=True).strip() for _ in range(2)}
    assert len(said) == 1


def test_the_number_5_and_the_text_5_share_an_id():
    """So rows that cannot be read are never looked up by it."""
    assert id_of({"prompt": "Five?", "response": 5}) == id_of({"prompt": "Five?", "response": "5"})
