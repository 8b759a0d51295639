"""What stands in a message and not in its rendering makes the row unreadable."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import message
from hf_safefilter.model.tokens import tokenise
from hf_safefilter.model.unrendered import Unread, require_rendered, tools_of, without_media

BARE = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
FULL = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>\n{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.arguments | tojson }}</call>{% endfor %}"
    "<|end|>\n{% endfor %}"
)
LAST_THOUGHT_ONLY = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|end|>\n{% endfor %}"
)
TOKENIZERS = {source: byte_level(source) for source in (BARE, FULL, LAST_THOUGHT_ONLY)}
ASKED = message({"role": "user", "content": "Who rides?"})
LOOK_UP = [{"type": "function", "function": {"name": "look_up", "description": "Says who rides where."}}]


def reason(source: str, *answers: dict, tools: str = "", ignore=()) -> str:
    said = [turn for answer in answers for turn in (ASKED, message({"role": "assistant"} | answer))]
    return tokenise(TOKENIZERS[source], [Conversation(tuple(said), tools=tools)], ignore=ignore)[0].reason


def calling(arguments) -> dict:
    return {"content": "", "tool_calls": [{"id": "call_1", "function": {"name": "ride", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"reasoning_content": "Link or Zelda?"}, "reasoning_content"),
        ({"thinking": "Link or Zelda?"}, "thinking"),
        ({"tool_calls": [{"function": {"arguments": {"to": "the castle, now"}}}]}, "tool_calls"),
        ({"refusal": "I will not say."}, "refusal"),
        ({"annotations": [{"note": ["first", "It is Zelda."]}]}, "annotations"),
        ({"value": "another answer"}, "value"),
        ({"my key!": "another answer"}, "key"),
        ({"k" * 41: "another answer"}, "key"),
        ({"名前": "another answer"}, "key"),
    ],
)
def test_a_key_that_is_not_rendered_is_named(more, key):
    assert reason(BARE, {"content": "Zelda."} | more) == f"unread_{key}"
    assert reason(BARE, {"content": "Zelda."} | more, ignore=[next(iter(more))]) == ""


def test_what_is_rendered_is_no_reason():
    thoughtful = {"content": "Zelda.", "reasoning_content": "Link or Zelda?"}
    assert reason(FULL, thoughtful) == ""
    assert reason(FULL, thoughtful, calling({"to": "the castle, now"})) == ""


def test_a_thought_under_another_name_is_rendered_under_the_templates():
    assert reason(FULL, {"content": "Zelda.", "reasoning": "Link or Zelda?"}) == ""
    assert reason(FULL, {"content": "Zelda.", "thinking": "Link or Zelda?"}) == ""


def test_one_turn_of_several_is_enough():
    assert reason(BARE, {"content": "Zelda."}, {"content": "Link.", "note": "It was Zelda."}) == "unread_note"
    assert reason(BARE, {"content": "Link.", "note": "It was Zelda."}, {"content": "Zelda."}) == "unread_note"


@pytest.mark.parametrize("word", ["call_1", "function", "2025-01-01T00:00:00", "a/b/c", "x" * 64, "", "v1.2+3"])
def test_ids_and_kinds_may_be_left_out(word):
    assert reason(BARE, {"content": "Zelda.", "id": word, "more": {"kind": [word]}}) == ""


@pytest.mark.parametrize("text", ["two words", "x" * 65, "how?", "line\nline", "{}"])
def test_any_longer_text_may_not(text):
    assert reason(BARE, {"content": "Zelda.", "id": text}) == "unread_id"


def test_numbers_and_truth_say_nothing():
    assert reason(BARE, {"content": "Zelda.", "score": 3.5, "good": True, "ranks": [1, 2]}) == ""


ARGUMENTS = 'say "Zelda rides"\n\tto C:\\castle, é 語 🙂'


@pytest.mark.parametrize("arguments", [{"words": ARGUMENTS}, {"list": [{"words": ARGUMENTS}, ARGUMENTS]}, ARGUMENTS])
def test_arguments_of_calls_count_as_rendered_inside_json(arguments):
    assert reason(FULL, calling(arguments)) == ""


def test_arguments_that_are_json_already_count_as_rendered_inside_json():
    assert reason(FULL, calling(json.dumps({"words": ARGUMENTS}))) == ""


def test_json_in_ascii_counts_as_well():
    turn = {"role": "assistant", "content": "", "tool_calls": [ARGUMENTS]}
    require_rendered([turn], [], f"<call>{json.dumps(ARGUMENTS)}</call>", ())
    require_rendered([turn], [], f"<call>{json.dumps(ARGUMENTS, ensure_ascii=False)}</call>", ())


NESTED = st.recursive(
    st.text(st.sampled_from([*'aZ "\\\n/é🙂{}<']), max_size=12),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=NESTED)
def test_whatever_is_written_as_json_is_rendered(value):
    turn = {"role": "assistant", "content": "Zelda.", "calls": value}
    require_rendered([turn], [], f"Zelda. {json.dumps(value, ensure_ascii=False)}", ())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=NESTED, where=st.sampled_from(["list", "dict"]))
def test_one_text_that_is_left_out_is_found_at_any_depth(value, where):
    hidden = [value, "left out, all of it"] if where == "list" else {"a": value, "b": "left out, all of it"}
    turn = {"role": "assistant", "content": "Zelda.", "calls": {"deep": [hidden]}}
    with pytest.raises(Unread, match="^unread_calls$"):
        require_rendered([turn], [], f"Zelda. {json.dumps(value, ensure_ascii=False)}", ())


@pytest.mark.parametrize("said", ["  Zelda \n rides.  ", "Zelda\n\n\nrides.", "\tZelda rides."])
def test_other_white_space_is_the_same_text(said):
    require_rendered([{"role": "assistant", "content": said}], [], "assistant: Zelda rides.", ())


def test_content_that_is_left_out_is_a_reason():
    turn = {"role": "assistant", "content": "Zelda rides."}
    with pytest.raises(Unread, match="^unread_content$"):
        require_rendered([turn], [], "assistant: Zelda", ())
    require_rendered([turn], [], "assistant: Zelda", ("content",))


def test_a_thought_that_a_template_drops_from_earlier_content_is_named_as_one():
    first = {"content": "<think>Link or Zelda?</think>Zelda."}
    last = {"content": "<think>Sure.</think>Zelda."}
    assert reason(LAST_THOUGHT_ONLY, first, last) == "unread_reasoning_content"
    assert reason(LAST_THOUGHT_ONLY, first, last, ignore=["reasoning_content"]) == ""
    assert reason(LAST_THOUGHT_ONLY, last) == ""


def test_control_tokens_among_the_words_do_not_hide_them():
    said = {"content": "a <|end|> b", "reasoning_content": "c <|start|>user\nd"}
    assert reason(FULL, said) == ""
    assert reason(BARE, said) == "unread_reasoning_content"


# Tools


def test_tools_must_be_rendered():
    tools = json.dumps(LOOK_UP)
    assert reason(FULL, {"content": "Zelda."}, tools=tools) == ""
    assert reason(BARE, {"content": "Zelda."}, tools=tools) == "unread_tools"
    assert reason(BARE, {"content": "Zelda."}, tools=tools, ignore=["tools"]) == ""


@pytest.mark.parametrize("text", ["look_up(name)", "{", '{"type": "function"}', '["look_up"]', "3", "[[]]"])
def test_tools_that_a_trainer_would_fail_over_are_a_reason(text):
    assert reason(FULL, {"content": "Zelda."}, tools=text) == "tools_not_json"
    with pytest.raises(Unread, match="^tools_not_json$"):
        tools_of(text)


def test_tools_are_what_their_json_says():
    assert tools_of(json.dumps(LOOK_UP)) == LOOK_UP
    assert tools_of("") == []


# Content in parts


def parts(*parts) -> dict:
    return {"content": list(parts)}


TEXT, IMAGE = {"type": "text", "text": "Zelda rides."}, {"type": "image", "url": "zelda.png"}


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "video", "input_audio"])
def test_a_part_that_is_no_text_is_a_reason_and_its_kind_can_be_ignored(kind):
    part = {"type": kind, kind: {"url": "zelda.png"}}
    assert reason(BARE, parts(TEXT, part)) == f"unread_{kind}"
    assert reason(BARE, parts(TEXT, part), ignore=[kind]) == ""
    assert reason(BARE, parts(TEXT, part), ignore=["other"]) == f"unread_{kind}"


def test_of_parts_the_text_is_read():
    said = message({"role": "assistant"} | parts(TEXT, IMAGE, {"type": "text", "text": " Home."}))
    assert without_media(said, ["image"])["content"] == "Zelda rides. Home."
    whole, plain = (
        tokenise(TOKENIZERS[BARE], [Conversation((ASKED, one))], ignore=["image"])[0]
        for one in (said, message({"role": "assistant", "content": "Zelda rides. Home."}))
    )
    assert whole.ids.tolist() == plain.ids.tolist() and whole.spans == plain.spans


def test_an_image_in_the_prompt_is_a_reason_too():
    asked = message({"role": "user"} | parts(IMAGE, {"type": "text", "text": "Who rides?"}))
    row = Conversation((asked, message({"role": "assistant", "content": "Zelda."})))
    assert tokenise(TOKENIZERS[BARE], [row])[0].reason == "unread_image"
    assert tokenise(TOKENIZERS[BARE], [row], ignore=["image"])[0].reason == ""


def test_what_a_text_part_says_elsewhere_is_a_reason():
    noted = TEXT | {"caption": "Zelda on a horse"}
    assert reason(BARE, parts(IMAGE, noted), ignore=["image"]) == "unread_caption"
    assert reason(BARE, parts(IMAGE, noted), ignore=["image", "caption"]) == ""


@pytest.mark.parametrize(
    ("part", "name"), [({"type": "odd kind!"}, "key"), ({"url": "zelda.png"}, "part"), (7, "part")]
)
def test_parts_of_no_known_kind_are_named_in_plain_words(part, name):
    assert reason(BARE, parts(TEXT, part)) == f"unread_{name}"


# Pairs


def test_each_side_of_a_pair_is_looked_at_by_itself():
    good, bad = (message({"role": "assistant", "content": "Zelda."} | more) for more in ({}, {"note": "It was Link."}))
    pair = Conversation((ASKED, good), rejected=(ASKED, bad))
    found = [tokenise(TOKENIZERS[BARE], [pair], rejected=side)[0].reason for side in (False, True)]
    assert found == ["", "unread_note"]
