"""Which template is used, and what it is handed."""

import re
from datetime import datetime

import pytest
from small_tokenizers import CHATML, byte_level, talk, turns

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import message
from hf_safefilter.errors import ModelError
from hf_safefilter.model.chat_template import (
    PINNED_DAY,
    PLAIN,
    RAW,
    ChatTemplate,
    Refused,
    template_digest,
    template_source,
)
from hf_safefilter.model.tokens import tokenise

TOKENIZER = byte_level(None)
TALK = [{"role": "user", "content": "Who rides?"}, {"role": "assistant", "content": "Zelda."}]
EACH = "{% for m in messages %}{{ m.content }}{% endfor %}"


def text(source: str, said=TALK, **options) -> str:
    return ChatTemplate(TOKENIZER, source).text(said, **options)


# What a template may ask for


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%B %d, %Y", "%H:%M", "%A"])
def test_the_day_is_pinned_and_written_as_the_template_asks(form):
    assert text("{{ strftime_now('" + form + "') }} " + EACH) == f"{datetime(2025, 1, 1):{form}} Who rides?Zelda."


def test_no_date_is_given_to_templates_that_have_their_own():
    source = (
        "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }} " + EACH
    )
    assert text(source) == "26 Jul 2024 Who rides?Zelda."
    assert text(source, options={"date_string": "3 May 2020"}) == "3 May 2020 Who rides?Zelda."


def test_what_is_rendered_is_what_transformers_renders():
    source = (
        "{{ bos_token }}{% for m in messages %}{% if not loop.first %}{% continue %}{% endif %}\n"
        "   {%- set shown = m.content | trim -%}\n"
        "    {{ shown }} {{ {'b': '<é>', 'a': 1} | tojson }} {{ tools | length }} {{ documents is none }}\n"
        "{% endfor %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    tokenizer, tools = byte_level(source), [{"type": "function", "function": {"name": "ride"}}]
    for header in (False, True):
        expected = tokenizer.apply_chat_template(TALK, tools=tools, tokenize=False, add_generation_prompt=header)
        assert ChatTemplate(tokenizer, source).text(TALK, header, tools=tools) == expected


def test_without_tools_there_are_none():
    source = "{{ 'none' if tools is none else tools | length }}" + EACH
    assert text(source) == text(source, tools=[]) == "noneWho rides?Zelda."
    assert text(source, tools=[{"name": "ride"}]).startswith("1")


def test_further_variables_come_with_a_row():
    source = "{{ 'brief ' if brief else '' }}" + EACH
    assert text(source) == "Who rides?Zelda."
    assert text(source, options={"brief": True}) == "brief Who rides?Zelda."


def test_the_header_of_an_answer_is_not_for_a_row_to_decide():
    source = EACH + "{% if add_generation_prompt %}!{% endif %}"
    assert text(source, options={"add_generation_prompt": True}) == "Who rides?Zelda."
    assert text(source, header=True) == "Who rides?Zelda.!"


@pytest.mark.parametrize("given", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_a_thought_is_found_by_the_names_that_templates_use(given, read):
    source = "{% for m in messages %}{{ m." + read + " or '' }}{{ m.content }}{% endfor %}"
    assert text(source, [TALK[0], TALK[1] | {given: "Hm. "}]) == "Who rides?Hm. Zelda."


def test_the_models_words_are_told_from_the_templates():
    source = "{% for m in messages %}({% generation %}{{ m.content }}{% endgeneration %}){% endfor %}"
    found, blocks = ChatTemplate(TOKENIZER, source).render(TALK)
    assert [found[start:stop] for start, stop in blocks] == ["Who rides?", "Zelda."]
    assert ChatTemplate(TOKENIZER, EACH).render(TALK)[1] == []


# Content in parts

PARTS = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}|{% endfor %}"
)


def test_templates_that_want_parts_get_them():
    assert text(PARTS) == "Who rides?|Zelda.|"


def test_templates_that_refuse_a_question_alone_are_told_as_well():
    strict = "{% if messages | length < 2 %}{{ raise_exception('no answer') }}{% endif %}"
    assert text(strict + PARTS) == "Who rides?|Zelda.|"
    assert text(strict + EACH) == "Who rides?Zelda."


def test_templates_that_take_both_get_text():
    both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}|{% endfor %}"
    assert text(both) == "Who rides?|Zelda.|"


def test_templates_that_trim_or_rewrite_content_get_text():
    for words in ("m.content | trim", "m.content.split('</think>')[-1]", "m['content'] + '!'"):
        assert "parts" not in text("{% for m in messages %}{{ " + words + " }}{% endfor %}")
        assert "type" not in text("{% for m in messages %}{{ " + words + " }}{% endfor %}")


def test_a_row_is_read_through_a_template_that_wants_parts():
    tokenizer = byte_level("{% for m in messages %}<|start|>{{ m.content[0].text }}<|end|>{% endfor %}")
    found = tokenise(tokenizer, [talk(("user", "Who rides?"), ("assistant", "Zelda."))])[0]
    (span,) = found.spans
    assert tokenizer.decode(found.ids.tolist()) == "<|start|>Who rides?<|end|><|start|>Zelda.<|end|>"
    assert tokenizer.decode(found.ids[span.start : span.stop].tolist()) == "Zelda.<|end|>"


# Refusals and faults


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content }}",
        "{{ messages[0].content.no_such_thing() }}",
        "{{ 1 // 0 }}",
        "{{ 'a' + 1 }}",
        "{{ 'a'.index('b') }}",
        "{{ none.x.y }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_fails_over_a_row_refuses_it(source):
    with pytest.raises(Refused):
        text(source)


@pytest.mark.parametrize("source", ["{{ messages.__class__.__mro__ }}", "{% set _ = messages.append(1) %}"])
def test_a_template_neither_reaches_out_of_its_sandbox_nor_changes_what_it_is_handed(source):
    with pytest.raises(Refused):
        text(source + EACH)


@pytest.mark.parametrize("source", ["{% for", "{{ x", "{% if x %}", "{% nonsense %}"])
def test_a_source_that_is_no_template_is_an_error(source):
    with pytest.raises(ModelError, match=r"not valid Jinja"):
        ChatTemplate(TOKENIZER, source)


def test_an_error_names_the_line():
    with pytest.raises(ModelError, match="line 3"):
        ChatTemplate(TOKENIZER, "a\nb\n{% for")


# Which template

TOOLS = "{{ tools | tojson }}" + EACH
NAMED = {"default": EACH, "tool_use": TOOLS, "rag": "rag" + EACH}


def named(**sources: str):
    tokenizer = byte_level(None)
    tokenizer.chat_template = dict(sources)
    return tokenizer


def test_the_models_own_template_is_used():
    assert template_source(byte_level(CHATML), None) == template_source(byte_level(CHATML), None, True) == CHATML
    assert template_source(byte_level(None), None) is None


def test_a_given_template_takes_its_place():
    assert template_source(byte_level(CHATML), EACH) == EACH
    assert template_source(byte_level(None), EACH) == EACH


def test_of_several_templates_the_default_is_used_and_the_one_for_tools_where_there_are_some():
    tokenizer = named(**NAMED)
    assert template_source(tokenizer, None) == EACH
    assert template_source(tokenizer, None, True) == TOOLS
    assert template_source(named(default=EACH), None, True) == EACH


@pytest.mark.parametrize("tools", [False, True])
def test_a_template_of_several_can_be_named(tools):
    assert template_source(named(**NAMED), "rag", tools) == NAMED["rag"]
    assert template_source(named(**NAMED), "default", tools) == EACH
    assert template_source(named(**NAMED), "{{ x }}", tools) == "{{ x }}"


def test_several_templates_without_a_default_are_an_error_that_names_them():
    tokenizer = named(rag=EACH, tool_use=TOOLS)
    with pytest.raises(ModelError, match=re.escape("chat_template=")) as error:
        template_source(tokenizer, None)
    assert "rag, tool_use" in str(error.value)
    with pytest.raises(ModelError, match=re.escape("chat_template=")):
        tokenise(tokenizer, [talk(("user", "Who?"), ("assistant", "Zelda."))])
    assert template_source(tokenizer, "rag") == EACH


def test_each_row_is_rendered_by_the_template_that_is_for_it():
    tokenizer = named(**NAMED)
    said = (message({"role": "user", "content": "Who?"}), message({"role": "assistant", "content": "Zelda rides."}))
    plain, with_tools = tokenise(tokenizer, [Conversation(said), Conversation(said, tools='[{"name": "ride"}]')])
    assert tokenizer.decode(plain.ids.tolist()) == "Who?Zelda rides."
    assert tokenizer.decode(with_tools.ids.tolist()) == '[{"name": "ride"}]Who?Zelda rides.'


# Digests


def test_the_digest_is_that_of_the_template_in_use():
    first = template_digest(byte_level(CHATML), None)
    assert re.fullmatch("sha256:[0-9a-f]{64}", first)
    assert template_digest(byte_level(CHATML), None) == first
    assert template_digest(byte_level(None), CHATML) == first, "wherever it comes from"
    assert template_digest(byte_level(CHATML + " "), None) != first
    assert template_digest(byte_level(CHATML), EACH) != first


def test_the_digest_changes_with_the_template_for_tools():
    first = template_digest(named(**NAMED), None)
    assert template_digest(named(**NAMED | {"tool_use": TOOLS + " "}), None) != first
    assert template_digest(named(**NAMED | {"default": EACH + " "}), None) != first
    assert template_digest(named(**NAMED | {"rag": "another"}), None) == first, "which is not in use"
    assert template_digest(named(**NAMED), "rag") != template_digest(named(**NAMED | {"rag": "another"}), "rag")


def test_the_digest_changes_with_the_pinned_day(monkeypatch):
    first = template_digest(byte_level(CHATML), None)
    monkeypatch.setattr("hf_safefilter.model.chat_template.PINNED_DAY", PINNED_DAY.replace(day=2))
    assert template_digest(byte_level(CHATML), None) != first


def test_digests_of_no_template_and_of_each_of_the_packages_own_differ():
    tokenizer = byte_level(None)
    assert len({template_digest(tokenizer, name) for name in (None, PLAIN, RAW)}) == 3


# The package's own


@pytest.mark.parametrize("name", [PLAIN, RAW])
def test_the_packages_own_templates_have_names(name):
    said = talk(("system", "Be brief."), ("user", "Who?"), ("assistant", "Zelda."))
    expected = {PLAIN: "Be brief.\nWho?\nZelda.", RAW: "Be brief.Who?Zelda."}[name]
    assert text(template_source(TOKENIZER, name), turns(said)) == expected
    assert text(template_source(byte_level(CHATML), name), turns(said)) == expected, "whatever the model has"


@pytest.mark.parametrize("said", ["Zelda.", "Zelda.\n", "\nZelda\n\nrides.", " "])
def test_plain_writes_a_line_between_turns_and_keeps_those_within(said):
    assert text(template_source(TOKENIZER, PLAIN), [TALK[0], TALK[1] | {"content": said}]) == f"Who rides?\n{said}"


def test_raw_joins_turns_and_ends_with_the_end_token_once():
    tokenizer = byte_level(None)
    for said, ending in (("Zelda.", "<eos>"), ("Zelda.\n", "<eos>")):
        found = tokenise(tokenizer, [talk(("user", "Who? "), ("assistant", said))], chat_template=RAW)[0]
        (span,) = found.spans
        assert found.ids.tolist() == tokenizer(f"Who? {said}{ending}")["input_ids"]
        assert tokenizer.decode(found.ids[span.start : span.stop].tolist()).strip() == f"{said}{ending}"
        assert found.ids.tolist().count(tokenizer.eos_token_id) == 1


def test_a_template_of_the_model_that_is_called_plain_is_the_models():
    assert template_source(named(default=EACH, plain="own" + EACH), PLAIN) == "own" + EACH
