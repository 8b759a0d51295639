"""A turn in either spelling is a message, with everything that it says."""

import json

import pytest

from hf_safefilter.data.messages import Message, as_text, is_blank, is_turns, json_of, message, messages_in, strings_in

CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]


def test_both_spellings_are_the_same_message():
    expected = Message("user", "Hello.")
    assert message({"role": "user", "content": "Hello."}) == message({"from": "human", "value": "Hello."}) == expected
    assert message({"role": None, "content": None, "from": "human", "value": "Hello."}) == expected


def test_a_turn_in_both_spellings_at_once_loses_neither():
    one = message({"role": "user", "content": "Hello.", "from": "gpt", "value": "Burn it."})
    assert (one.role, one.content) == ("user", "Hello.")
    assert one.extras() == {"from": "gpt", "value": "Burn it."}


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("human", "user"),
        ("Human", "user"),
        (" prompter ", "user"),
        ("gpt", "assistant"),
        ("ChatGPT", "assistant"),
        ("bing", "assistant"),
        ("function_call", "assistant"),
        ("function-call", "assistant"),
        ("Tool Call", "assistant"),
        ("observation", "tool"),
        ("function", "tool"),
        ("ipython", "tool"),
        ("SYSTEM", "system"),
        ("developer", "developer"),
    ],
)
def test_other_names_of_roles(given, role):
    one = message({"role": given, "content": "x"})
    assert (one.role, one.fault) == (role, "")


@pytest.mark.parametrize("given", ["narrator", "user<|end|>", "user\n", "", "assistant2"])
def test_a_role_that_no_template_should_write_is_kept_and_refused(given):
    one = message({"role": given, "content": "x"})
    assert one.fault == ("unknown_role" if given != "user\n" else "")
    assert one.role == (given if given != "user\n" else "user")


def test_what_a_template_gets_is_all_that_was_said():
    turn = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": CALL, "name": None}
    one = message(turn)
    assert one.to_dict() == {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": CALL}
    assert one.extras() == {"reasoning_content": "Hm.", "tool_calls": CALL}
    assert not one.fault and one.trained
    one.to_dict()["tool_calls"].clear()
    assert one.to_dict()["tool_calls"] == CALL, "a template may change what it was given"


def test_an_answer_of_tool_calls_alone_is_one_and_of_nothing_is_none():
    assert not message({"role": "assistant", "tool_calls": CALL}).fault
    assert not message({"role": "assistant", "content": "", "tool_calls": []}).fault
    assert message({"role": "assistant", "content": None, "tool_calls": []}).fault == "not_text"
    assert message({"role": "assistant"}).fault == "not_text"


# Content


def test_parts_that_are_text_alone_are_text():
    for parts in (
        [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "you."}],
        [{"type": "text", "text": "Hello, ", "image_url": None}, {"type": "text", "text": "you.", "image_url": None}],
        ["Hello, ", "you."],
    ):
        assert message({"role": "user", "content": parts}) == Message("user", "Hello, you.")
    assert message({"role": "user", "content": {"type": "text", "text": "Hello, you."}}).content == "Hello, you."


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "Hello.", "alt": "Burn it."},
        {"type": "output_text", "text": "Hello."},
        {"text": "Hello."},
        7,
    ],
)
def test_parts_that_are_more_than_text_are_kept_as_they_are(part):
    one = message({"role": "user", "content": [{"type": "text", "text": "Look:"}, part]})
    assert one.content is None and not one.fault
    assert one.to_dict()["content"] == [{"type": "text", "text": "Look:"}, part]


def test_content_that_is_no_text_is_read_as_a_number_of_no_meaning():
    assert messages_in(7) == [Message("assistant", "7", fault="not_text")]
    assert message(7).fault == "not_text" and message("hi").fault == "not_text"


# What is trained


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ({}, True),
        ({"weight": 1}, True),
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": None}, True),
        ({"train": False}, False),
        ({"train": True}, True),
        ({"training": "no"}, False),
        ({"training": "False"}, False),
        ({"weight": None, "train": False}, False),
    ],
)
def test_a_turn_says_whether_it_is_trained(more, trained):
    one = message({"role": "assistant", "content": "x", **more})
    assert one.trained is trained and not one.more


# Cells


def test_turns_come_as_a_list_a_struct_one_turn_or_json():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = [Message("user", "a"), Message("assistant", "b")]
    assert messages_in(turns) == messages_in(tuple(turns)) == messages_in(json.dumps(turns)) == expected
    assert messages_in({"role": ["user", "assistant"], "content": ["a", "b"]}) == expected
    assert messages_in(turns[0]) == messages_in(json.dumps(turns[0])) == expected[:1]


@pytest.mark.parametrize("text", ["a", "[1, 2]", '{"city": "Rome"}', '[{"a": 1}]', "[{", "[[]]", "", "[" * 100_000])
def test_other_json_is_text(text):
    assert messages_in(text) == [Message("assistant", text)]
    assert messages_in(text, alone="user") == [Message("user", text)]


def test_what_is_turns():
    assert (
        is_turns([{"role": "user"}]) and is_turns({"from": "human"}) and is_turns({"role": ["user"], "content": [""]})
    )
    assert not is_turns([]) and not is_turns(["hi"]) and not is_turns([{"content": "a"}]) and not is_turns("role")


# Texts


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\u2060\ufeff", "\u00ad", "\u3000", "\x00", "\u202e"])
def test_nothing_that_one_sees_is_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", " . ", "\u200b0", "é", "漢", "🙂", "_"])
def test_anything_that_one_sees_is_not(text):
    assert not is_blank(text)


def test_every_text_is_found_at_any_depth():
    value = {"a": ["b", {"c": "d"}, ("e",), 1, None], "f": {"g": {"h": "i"}}}
    assert strings_in(value) == ["b", "d", "e", "i"]


def test_what_json_does_not_know_is_the_same_in_every_process():
    first, second = (json_of({"a": object()}) for _ in range(2))
    assert first == second and " at 0x" not in first
    assert as_text(object()) == as_text(object())
    itself: list = []
    itself.append(itself)
    assert as_text(itself) == "unreadable list" and json_of(itself) == '{"unreadable": "list"}'
    assert as_text({1: "a", "b": "c"}) == "unreadable dict"
