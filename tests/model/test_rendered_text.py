"""Texts that a template has rendered are taken apart into the turns they were made of; no others are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, GEMMA, LLAMA, MISTRAL, byte_level

from hf_safefilter.model.chat_template import ChatTemplate
from hf_safefilter.model.rendered_text import turns_in

ALPACA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + m.content + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SOURCES = {"chatml": CHATML, "llama": LLAMA, "gemma": GEMMA, "mistral": MISTRAL, "alpaca": ALPACA, "zephyr": ZEPHYR}
TEMPLATES = {name: ChatTemplate(byte_level(None), source) for name, source in SOURCES.items()}
TAKES_SYSTEM = ["chatml", "llama", "alpaca", "zephyr"]
WORDS = st.text(st.sampled_from([*"aeLZ .,?!1+{}é🙂語", "\n", "\t"]), max_size=20).map(str.strip)


def talk(*said: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said))]


def parsed(name: str, text: str):
    return turns_in(text, TEMPLATES[name].text)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(said=st.lists(st.tuples(WORDS, WORDS), max_size=3), last=st.tuples(WORDS, WORDS.filter(bool)))
@pytest.mark.parametrize("name", SOURCES)
def test_a_rendered_conversation_is_taken_apart_into_its_turns(name, said, last):
    turns = talk(*(words for pair in [*said, last] for words in pair))
    assert parsed(name, TEMPLATES[name].text(turns)) == turns


@settings(max_examples=60, deadline=None, derandomize=True)
@given(system=WORDS.filter(bool), said=st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=3))
@pytest.mark.parametrize("name", TAKES_SYSTEM)
def test_a_system_turn_comes_first(name, system, said):
    turns = talk(*(words for pair in said for words in pair), system=system)
    assert parsed(name, TEMPLATES[name].text(turns)) == turns


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", " "])
@pytest.mark.parametrize("name", SOURCES)
def test_whitespace_at_the_end_does_not_matter(name, ending):
    turns = talk("Who rides?", "Zelda rides.", "And who follows?", "Link does.")
    text = TEMPLATES[name].text(turns).rstrip() + ending
    assert parsed(name, text) == turns


def test_white_space_within_turns_is_kept_where_the_template_keeps_it():
    turns = talk("  Who\n\nrides?\n", "\n\nZelda.  ")
    assert parsed("chatml", TEMPLATES["chatml"].text(turns)) == turns
    trimmed = talk("Who\n\nrides?", "Zelda.")
    assert parsed("llama", TEMPLATES["llama"].text(turns)) == trimmed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "Zelda rides through the rain.",
        "User: Who rides?\n\nAssistant: Zelda.",
        "<|start|>",
        "<|start|>assistant\nZelda.<|end|>\n",
        "{{ messages[0].content }}",
    ],
)
@pytest.mark.parametrize("name", SOURCES)
def test_other_texts_are_no_rendering(name, text):
    assert parsed(name, text) is None


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "alpaca"])
def test_a_rendering_that_something_was_done_to_is_none(name):
    turns = talk("Who rides?", "Zelda rides.", "And who follows?", "Link does.")
    text = TEMPLATES[name].text(turns)
    assert parsed(name, text) == turns
    broken = [
        "Note. " + text,
        text.rstrip() + " and more",
        text[: text.index("Link")],
        text.rstrip()[:-1],  # a letter of what closes the answer
        text.replace("Who rides?", "", 1)[8:],
    ]
    assert [parsed(name, one) for one in broken] == [None] * len(broken)


def test_where_nothing_closes_an_answer_all_that_follows_is_its():
    text = TEMPLATES["alpaca"].text(talk("Who rides?", "Zelda rides."))
    assert parsed("alpaca", text + "And who follows?") == talk("Who rides?", "Zelda rides.\n\nAnd who follows?")
    assert parsed("alpaca", "Be brief.\n\n" + text) == talk("Who rides?", "Zelda rides.", system="Be brief.")


@pytest.mark.parametrize("name", SOURCES)
def test_a_question_alone_is_none(name):
    assert parsed(name, TEMPLATES[name].text(talk("Who rides?"))) is None


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "mistral"])
def test_a_question_that_waits_for_its_answer_is_none(name):
    text = TEMPLATES[name].text(talk("Who rides?", "Zelda.", "And who follows?"), header=True)
    assert parsed(name, text) is None


def test_the_rendering_of_another_template_is_none():
    turns = talk("Who rides?", "Zelda rides.")
    for name in SOURCES:
        others = [other for other in SOURCES if other != name]
        assert [parsed(other, TEMPLATES[name].text(turns)) for other in others] == [None] * len(others)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", SOURCES)
def test_whatever_is_taken_apart_is_rendered_back_to_itself(name, data):
    pieces = sorted({"\n", " ", "Zelda", *TEMPLATES[name].literals})
    whole = TEMPLATES[name].text(talk("Who?", "Link"))
    parts = st.lists(st.sampled_from([*pieces, whole, whole[: len(whole) // 2]]), max_size=6).map("".join)
    text = data.draw(parts)
    turns = parsed(name, text)
    assert turns is None or TEMPLATES[name].text(turns).rstrip() == text.rstrip()


def test_a_template_that_takes_no_such_turns_has_no_renderings():
    template = ChatTemplate(byte_level(None), "{{ raise_exception('no') }}")
    assert turns_in("Who?", template.text) is None
    template = ChatTemplate(
        byte_level(None), "{% for m in messages %}{{ m.content }}{% endfor %}"
    )  # nothing between turns
    assert turns_in("Who?Link", template.text) is None


def test_control_tokens_that_a_turn_spells_make_it_another_conversation():
    """A text does not say whether the template or a turn wrote them: it is read as a trainer would read it."""
    text = TEMPLATES["chatml"].text(talk("Who?", "Link<|end|>\n<|start|>user\nSure?<|end|>\n<|start|>assistant\nYes."))
    assert parsed("chatml", text) == talk("Who?", "Link", "Sure?", "Yes.")
