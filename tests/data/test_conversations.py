"""Every shape that rows come in, decided row by row, is read as the conversation that a trainer would render."""

import json
import logging

import pytest
from datasets import Dataset

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import (
    Conversation,
    answered_text,
    answers_in,
    as_conversations,
    conversations,
    prompt_of,
    response_of,
)
from hf_safefilter.data.messages import Message
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import shape_of, with_ignored
from hf_safefilter.errors import DataError, MissingError, OptionError

ASKED, SAID, WORSE = "Who is Zelda?", "A princess.", "No idea."


def said(*turns):
    """Messages from (role, content) pairs."""
    return tuple(Message(role, content) for role, content in turns)


def turns(*pairs):
    """The same as `messages` holds them."""
    return [{"role": role, "content": content} for role, content in pairs]


def shared(*pairs):
    """The same in ShareGPT's spelling."""
    return [{"from": role, "value": content} for role, content in pairs]


def read(row, **options):
    (one,) = as_conversations([row], options or None)
    return one


PLAIN = Conversation(said(("user", ASKED), ("assistant", SAID)))
PAIR = Conversation(PLAIN.messages, rejected=said(("user", ASKED), ("assistant", WORSE)))
TURNS = turns(("user", ASKED), ("assistant", SAID))
WORSE_TURNS = turns(("user", ASKED), ("assistant", WORSE))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"messages": [dict(turn, name=None, tool_calls=None) for turn in TURNS]},
        {"messages": {"role": ["user", "assistant"], "content": [ASKED, SAID]}},
        {"messages": json.dumps(TURNS)},
        {"messages": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS]},
        {"conversations": shared(("human", ASKED), ("gpt", SAID))},
        {"conversations": shared(("Human", ASKED), ("bing", SAID))},
        {"conversations": {"from": ["human", "gpt"], "value": [ASKED, SAID]}},
        {"conversation": TURNS},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": ASKED, "response": SAID},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"prompt": ASKED, "completion": SAID, "label": True},
        {"instruction": ASKED, "output": SAID},
        {"instruction": ASKED, "input": "", "output": SAID},
        {"instruction": ASKED, "input": None, "output": SAID},
        {"instruction": ASKED, "context": "", "response": SAID},
        {"instruction": ASKED, "input": "", "output": SAID, "system": "", "history": []},
        {"question": ASKED, "answer": SAID},
        {"query": ASKED, "response": SAID},
        {"system_prompt": "", "question": ASKED, "response": SAID},
        {"data": [ASKED, SAID]},
        {"text": f"Human: {ASKED}\n\nAssistant: {SAID}"},
        {"messages": TURNS, "prompt": ASKED},
        {"prompt": ASKED, "chosen": SAID, "rejected": None},
    ],
    ids=lambda row: "+".join(row),
)
def test_every_known_shape_says_the_same_and_has_the_same_id(row):
    assert read(row) == PLAIN
    assert row_id(read(row)) == row_id(PLAIN)
    assert conversations(Batch(Dataset.from_list([row, row]).with_format("arrow")[:])) == [PLAIN, PLAIN]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": SAID, "rejected": WORSE},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": WORSE_TURNS[1:]},
        {"prompt": TURNS[:1], "chosen": TURNS, "rejected": WORSE_TURNS},
        {"prompt": ASKED, "chosen": TURNS, "rejected": WORSE_TURNS},
        {"chosen": TURNS, "rejected": WORSE_TURNS},
        {"chosen": TURNS, "rejected": WORSE_TURNS, "messages": TURNS, "prompt": ASKED},
        {"question": ASKED, "chosen": SAID, "rejected": WORSE},
        {"instruction": ASKED, "input": "", "chosen": SAID, "rejected": WORSE},
        {
            "conversations": shared(("human", ASKED)),
            "chosen": {"from": "gpt", "value": SAID},
            "rejected": {"from": "gpt", "value": WORSE},
        },
        {
            "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}",
            "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {WORSE}",
        },
        {
            "prompt": f"\n\nHuman: {ASKED}\n\nAssistant:",
            "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}",
            "rejected": WORSE,
        },
    ],
    ids=lambda row: "+".join(row),
)
def test_every_preference_pair_has_both_sides_and_the_same_id(row):
    assert read(row) == PAIR
    assert as_conversations([row, row]) == [PAIR, PAIR]
    assert row_id(read(row)) == row_id(PAIR) != row_id(PLAIN)
    assert conversations(Batch(Dataset.from_list([row, row]).with_format("arrow")[:])) == [PAIR, PAIR]


# ShareGPT, OpenAI, Alpaca and others


def test_sharegpt_names_of_tools_and_models_are_roles():
    talk = shared(
        ("system", "Be brief."),
        ("human", "Weather in Rome?"),
        ("function_call", '{"name": "weather"}'),
        ("observation", "21 C"),
        ("GPT", "It is 21 degrees."),
        ("Human", "And now?"),
        ("tool_call", '{"name": "clock"}'),
        ("tool", "noon"),
        ("bing", "It is noon."),
    )
    one = read({"conversations": talk})
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool", "assistant"]
    assert [message.role for message in one.messages] == roles and not one.reason
    assert answers_in(one.messages) == (2, 4, 6, 8), "a call of a function is learned too"
    assert response_of(one) == "It is noon." and prompt_of(one) == "And now?"


def test_sharegpt_may_have_its_system_turn_in_a_column():
    row = {"conversations": shared(("human", ASKED), ("gpt", SAID)), "system": "Be brief."}
    assert read(row).messages == said(("system", "Be brief."), *[("user", ASKED), ("assistant", SAID)])
    row["conversations"] = shared(("system", "Be brief."), ("human", ASKED), ("gpt", SAID))
    assert [one.role for one in read(row).messages] == ["system", "user", "assistant"], "and not twice"


def test_answers_of_weight_zero_are_not_trained():
    talk = [*TURNS, *turns(("user", "And Link?"), ("assistant", "A hero."))]
    line = {"messages": [talk[0], {**talk[1], "weight": 0}, talk[2], {**talk[3], "weight": 1}]}
    one = read(line)
    assert [message.trained for message in one.messages] == [True, False, True, True]
    assert answers_in(one.messages) == (3,) and not one.reason
    assert answered_text(one) == "A hero."
    assert read({"messages": [talk[0], {**talk[1], "weight": 0}]}).reason == "no_assistant_turn"
    for key, value in (("train", False), ("training", "false"), ("weight", 0.0)):
        assert answers_in(read({"messages": [talk[0], {**talk[1], key: value}, *talk[2:]]}).messages) == (3,)
    assert answers_in(read({"messages": [talk[0], {**talk[1], "weight": None}]}).messages) == (1,)


def test_alpaca_history_is_earlier_turns():
    row = {
        "instruction": "And the second?",
        "input": "Of the two.",
        "output": "Yes.",
        "system": "Be brief.",
        "history": [["Which cake?", "With nuts."], ["Why?", "It is good."]],
    }
    assert read(row).messages == said(
        ("system", "Be brief."),
        ("user", "Which cake?"),
        ("assistant", "With nuts."),
        ("user", "Why?"),
        ("assistant", "It is good."),
        ("user", "And the second?\nOf the two."),
        ("assistant", "Yes."),
    )
    other = row | {"history": [["Which house?", "The barn."], ["Why?", "It is good."]]}
    assert row_id(read(other)) != row_id(read(row)), "what was said before is part of the row"


def test_openorca_has_its_system_turn_in_a_column_of_another_name():
    row = {"id": "niv.1", "system_prompt": "Be brief.", "question": ASKED, "response": SAID}
    assert read(row).messages == said(("system", "Be brief."), ("user", ASKED), ("assistant", SAID))


def test_ultrachat_texts_are_user_and_assistant_in_turn():
    one = read({"id": "0", "data": [ASKED, SAID, "And Link?", "A hero."]})
    assert one.messages == said(("user", ASKED), ("assistant", SAID), ("user", "And Link?"), ("assistant", "A hero."))


def test_inputs_are_joined_to_instructions():
    assert read({"instruction": "Add.", "input": "1 + 1", "output": "2"}).messages[0] == Message("user", "Add.\n1 + 1")


def test_tools_and_variables_of_the_template_are_kept():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"messages": TURNS, "tools": tools, "chat_template_kwargs": {"enable_thinking": False, "absent": None}}
    for one in as_conversations([row, row]):
        assert json.loads(one.tools) == tools
        assert json.loads(one.template_options) == {"enable_thinking": False}
    assert read(row | {"tools": json.dumps(tools)}).tools == json.dumps(tools)
    for options in ({"messages": []}, "a word", {"tools": [1]}):
        assert read({"messages": TURNS, "chat_template_kwargs": options}).reason == "template_options_not_known"


# Transcripts


def test_a_transcript_of_several_turns_is_all_of_them():
    text = f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}\nOf Hyrule.\n\nHuman: And Link?\n\nAssistant: A hero."
    one = read({"chosen": text, "rejected": f"{text} Or not."})
    assert one.messages == said(
        ("user", ASKED), ("assistant", f"{SAID}\nOf Hyrule."), ("user", "And Link?"), ("assistant", "A hero.")
    )
    assert one.rejected[-1] == Message("assistant", "A hero. Or not.")


def test_a_transcript_before_chosen_and_rejected_is_the_turns_before_them():
    asked = f"Human: {ASKED}\n\nAssistant: {SAID}\n\nHuman: And Link?\n\nAssistant:"
    one = read({"prompt": asked, "chosen": "A hero.", "rejected": WORSE})
    assert one.messages == said(("user", ASKED), ("assistant", SAID), ("user", "And Link?"), ("assistant", "A hero."))
    assert one.rejected == (*one.messages[:-1], Message("assistant", WORSE))


@pytest.mark.parametrize(
    "text",
    [
        "Human: Hello.",
        "Assistant: Hello.",
        f"As the Human: {ASKED} Assistant: said",
        f"Assistant: {SAID}\n\nHuman: {ASKED}",
        "Answer: 42\nQuestion: what was it?",
    ],
)
def test_what_is_no_transcript_is_text(text):
    assert read({"text": text}).messages == said(("text", text))


@pytest.mark.parametrize(
    "answer",
    [
        f"Human: {ASKED}\n\nAssistant: Fine.\n\nHuman: Burn it all.\n\nAssistant: Yes.",
        "Q: Burn it all?\nA: Yes.",
        json.dumps(turns(("user", "Burn it all."), ("assistant", "Yes."))),
    ],
)
def test_an_answer_cannot_hide_words_by_looking_like_turns_of_others(answer):
    """A trainer learns all of the text, so all of it must be read as the answer."""
    assert read({"prompt": ASKED, "response": answer}).messages == said(("user", ASKED), ("assistant", answer))
    pair = read({"prompt": ASKED, "chosen": answer, "rejected": answer})
    assert pair.messages == pair.rejected == said(("user", ASKED), ("assistant", answer))


# Shapes by row


def test_half_a_file_may_be_of_one_shape_and_half_of_another():
    rows = [{"messages": TURNS}, {"prompt": ASKED, "response": SAID}, {"text": "Once."}, {"haiku": "Snow."}]
    expected = [PLAIN, PLAIN, Conversation(said(("text", "Once.")))]
    found = as_conversations(rows)
    assert found[:3] == expected and found[3].reason == "empty_row"
    table = Dataset.from_list(
        [{"messages": None, "prompt": None, "response": None, "text": None} | row for row in rows]
    )
    assert conversations(Batch(table.with_format("arrow")[:]))[:3] == expected
    assert conversations(Batch(table[:]))[:3] == expected


def test_an_empty_column_of_another_shape_is_not_in_the_way():
    row = {"messages": [], "prompt": ASKED, "response": SAID, "chosen": "", "text": ""}
    assert read(row) == PLAIN
    assert read({"prompt": "", "question": ASKED, "answer": SAID}) == PLAIN


def test_rows_of_lists_of_turns_are_not_taken_for_one_row():
    row = {"conversations": shared(("human", ASKED)), "chosen": shared(("gpt", SAID))[0], "rejected": {}}
    batch = Batch({name: [cell, cell, cell] for name, cell in row.items()})
    assert (batch.n, batch.is_row) == (3, False)
    batch = Batch({"messages": [TURNS, TURNS], "chat_template_kwargs": [{"a": 1}, {"a": 2}]})
    assert [one.template_options for one in conversations(batch)] == ['{"a":1}', '{"a":2}']


def test_the_shape_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr("hf_safefilter.data.conversations._logged", set())
    with caplog.at_level(logging.INFO, logger="hf_safefilter"):
        as_conversations([{"prompt": ASKED, "response": SAID, "system": "Be brief."}] * 5)
    own = {id(one): one.getMessage() for one in caplog.records if one.name.startswith("hf_safefilter")}
    assert [*own.values()] == ["rows are read as prompt 'prompt', answer 'response' (with 'system')"]


# Columns that a person names


def test_columns_can_be_named():
    row = {"q": ASKED, "a": SAID}
    assert read(row, prompt="q", response="a") == PLAIN
    assert read({"talk": TURNS}, messages="talk") == PLAIN
    assert read({"body": "Once."}, text="body").messages == said(("text", "Once."))
    assert read({"q": ASKED, "good": SAID, "bad": WORSE}, prompt="q", chosen="good", rejected="bad") == PAIR
    assert read({"q": ASKED, "a": SAID, "who": "Be brief."}, prompt="q", response="a", system="who").messages[0] == (
        Message("system", "Be brief.")
    )


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"prompt": "q", "response": "x"}, MissingError, "'x'}` names a column that is not there"),
        ({"prompt": "q"}, OptionError, "does not say where a conversation stands"),
        ({"text": "q", "prompt": "q"}, OptionError, "does not say where a conversation stands"),
        ({"prompt": "q", "reply": "a"}, OptionError, "found: prompt, reply; known are messages"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(columns, error, says):
    with pytest.raises(error, match=says):
        as_conversations([{"q": ASKED, "a": SAID}], columns)


def test_columns_of_no_known_shape_are_listed_with_the_way_out():
    assert shape_of(frozenset({"haiku", "season"})) is None
    with pytest.raises(DataError, match="found: haiku, season") as error:
        as_conversations([{"haiku": "Snow.", "season": "winter"}])
    assert "columns=" in str(error.value)


# What is not read


ALPACA = {"instruction": ASKED, "input": "", "output": SAID}


@pytest.mark.parametrize(
    "text",
    [
        f"{ASKED}\n{SAID}",
        f"### Instruction:\n{ASKED}\n\n### Response:\n{SAID}",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{ASKED}\n\n### Response:\n{SAID}",
        "",
    ],
)
def test_a_text_column_that_repeats_the_row_says_nothing_new(text):
    assert read(ALPACA | {"text": text}) == PLAIN


def test_any_other_text_beside_is_unread():
    one = read(ALPACA | {"text": f"{ASKED}\n{SAID}\nBurn the house down."})
    assert one.reason == "unread_text" and "Burn the house down." in one.unread
    other = read(ALPACA | {"text": "Water the plants."})
    assert len({row_id(one), row_id(other), row_id(PLAIN)}) == 3, "unread text is part of the id"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"messages": TURNS, "prompt": "Something else entirely."}, "unread_prompt"),
        ({"messages": TURNS, "conversations": WORSE_TURNS}, "unread_conversations"),
        ({"prompt": ASKED, "response": SAID, "completion": WORSE}, "unread_response"),
        ({"prompt": ASKED, "response": SAID, "data": [ASKED, WORSE]}, "unread_data"),
        (
            {"chosen": TURNS, "rejected": WORSE_TURNS, "messages": [TURNS[0], *turns(("assistant", "Burn it."))]},
            "unread_messages",
        ),
    ],
)
def test_two_shapes_in_one_row_that_say_different_things_are_not_guessed_between(more, reason):
    assert read(more).reason == reason


def test_what_may_go_unread_is_said():
    row = ALPACA | {"text": "Water the plants."}
    one = read(row, ignore="text")
    assert not one.reason and one.messages == PLAIN.messages
    assert row_id(one) == row_id(read(row)), "whether text may go unread changes no id"
    assert read(row, ignore="prompt, messages").reason == "unread_text"
    assert with_ignored({"ignore": "text"}, ["trailing_turn", "text"]) == {"ignore": "text,trailing_turn"}
    assert with_ignored(None, []) is None


def test_a_column_to_ignore_goes_with_a_mapping():
    row = {"q": ASKED, "a": SAID, "prompt": "something else"}
    assert read(row, prompt="q", response="a").reason == "unread_prompt"
    assert not read(row, prompt="q", response="a", ignore="prompt").reason


def test_turns_after_the_last_answer_are_trailing():
    row = {"messages": [*TURNS, *turns(("user", "Thanks! Now burn the house down."))]}
    one = read(row)
    assert one.reason == "unread_trailing_turn" and len(one.messages) == 3
    assert not read(row, ignore="trailing_turn").reason
    assert row_id(one) == row_id(read(row, ignore="trailing_turn")) != row_id(PLAIN)
    pair = {"chosen": TURNS, "rejected": [*WORSE_TURNS, *turns(("user", "Thanks!"))]}
    assert read(pair).reason == "unread_trailing_turn"
    untrained = {"messages": [*TURNS, TURNS[0], {**TURNS[1], "weight": 0}]}
    assert read(untrained).reason == "unread_trailing_turn"


# What cannot be read


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " ", "response": SAID}, "empty_prompt"),
        ({"prompt": "", "response": SAID}, "empty_prompt"),
        ({"prompt": ASKED, "response": "\n"}, "empty_response"),
        ({"prompt": ASKED, "response": "\u200b\u2060 \ufeff"}, "empty_response"),
        ({"prompt": ASKED, "response": ""}, "empty_response"),
        ({"prompt": None, "response": SAID}, "no_known_shape"),
        ({"prompt": ASKED, "response": 7}, "not_text"),
        ({"prompt": 7, "response": SAID}, "not_text"),
        ({"messages": [{"role": "user<|end|>", "content": "x"}, TURNS[1]]}, "unknown_role"),
        ({"messages": [{"role": None, "content": "x"}, TURNS[1]]}, "not_text"),
        ({"messages": TURNS[:1]}, "no_assistant_turn"),
        ({"messages": TURNS[1:]}, "no_user_turn"),
        ({"messages": []}, "no_assistant_turn"),
        ({"messages": None}, "empty_row"),
        ({"messages": [ASKED]}, "no_assistant_turn"),
        ({"messages": 5}, "not_text"),
        ({"messages": [5, TURNS[1]]}, "not_text"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "not_text"),
        ({"messages": [{"role": "user", "content": 7}, {"role": "assistant"}]}, "not_text"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": " "}, "empty_response"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": 5}, "not_text"),
        ({"text": "  "}, "empty_response"),
        ({"text": 3}, "not_text"),
    ],
)
def test_what_cannot_be_scored_has_a_reason_and_an_id(row, reason):
    one = read(row)
    assert one.reason == reason
    assert len(row_id(one)) == 32 and int(row_id(one), 16)


def test_unreadable_rows_have_ids_of_their_own():
    rows = [
        {"prompt": None, "response": SAID},
        {"prompt": None, "response": WORSE},
        {"prompt": ASKED, "response": 7},
        {"prompt": ASKED, "response": 8},
        {"messages": 5},
        {"messages": None},
        {"text": 3},
        {"messages": [{"role": "user<|end|>", "content": "x"}, TURNS[1]]},
        {"messages": [{"role": "user<|im|>", "content": "x"}, TURNS[1]]},
        {"messages": [5, TURNS[1]]},
        {"messages": []},
    ]
    found = as_conversations(rows)
    assert all(one.reason for one in found)
    assert len({row_id(one) for one in found}) == len(rows)


def test_half_a_surrogate_pair_is_text():
    one = read({"prompt": "Who?\ud800", "response": SAID})
    assert not one.reason and len(row_id(one)) == 32
