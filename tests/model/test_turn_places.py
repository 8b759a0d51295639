"""Where turns stand in their rendering, against renderings put together by hand, whose places are known."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level

from hf_safefilter.model.chat_template import ChatTemplate, Refused
from hf_safefilter.model.turn_places import Place, place_by_tags, place_turns, tiled


@dataclass(frozen=True)
class Style:
    """A template, and the same by hand.

    Attributes:
        template: Jinja source.
        opening: What it writes before all turns.
        headers: What it writes before a turn of a role.
        ends: What it writes after a turn of a role.
        closing: What of the end of an answer belongs to it.
        trims: Whether it trims content.
    """

    template: str
    opening: str
    headers: dict[str, str]
    ends: dict[str, str]
    closing: str
    trims: bool = False

    def by_hand(self, turns) -> tuple[str, list[Place]]:
        text, places = self.opening, []
        for at, turn in enumerate(turns):
            role, content = turn["role"], turn["content"].strip() if self.trims else turn["content"]
            text += self.headers[role]
            stop = len(text) + len(content)
            places.append(Place(at, len(text), stop, stop + len(self.closing) * (role == "assistant")))
            text += content + self.ends[role]
        return text, places


def alike(template: str, opening: str, header: str, end: str, closing: str, trims: bool = False) -> Style:
    """A style that writes the same around the turns of every role."""
    roles = ("system", "user", "assistant")
    return Style(
        template, opening, {role: header.format(role) for role in roles}, dict.fromkeys(roles, end), closing, trims
    )


HEADER = "{% if add_generation_prompt %}"
STYLES = {
    "chatml": alike(
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
        + HEADER
        + "<|start|>assistant\n{% endif %}",
        "",
        "<|start|>{}\n",
        "<|end|>\n",
        "<|end|>",
    ),
    "llama3": alike(
        "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>"
        "{% endfor %}" + HEADER + "<|head|>assistant<|/head|>\n\n{% endif %}",
        "<bos>",
        "<|head|>{}<|/head|>\n\n",
        "<|eot|>",
        "<|eot|>",
        trims=True,
    ),
    "mistral": Style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
        " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "<bos>",
        {"user": "[INST] ", "assistant": " "},
        {"user": " [/INST]", "assistant": "<eos>"},
        "<eos>",
    ),
    "gemma": Style(
        "{{ bos_token }}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}</turn>\n{% endfor %}" + HEADER + "<turn>model\n{% endif %}",
        "<bos>",
        {"user": "<turn>user\n", "assistant": "<turn>model\n"},
        {"user": "</turn>\n", "assistant": "</turn>\n"},
        "</turn>",
        trims=True,
    ),
    "plain": Style(
        "{% for m in messages %}{{ m.content }}{{ '' if loop.last else '\\n' }}{% endfor %}",
        "",
        {"user": "", "assistant": ""},
        {"user": "\n", "assistant": "\n"},
        "",
    ),
    "speakers": Style(
        "{% for m in messages %}{{ '### ' + m.role | capitalize + ':\\n' + m.content + '\\n\\n' }}{% endfor %}"
        + HEADER
        + "{{ '### Assistant:\\n' }}{% endif %}",
        "",
        {"user": "### User:\n", "assistant": "### Assistant:\n"},
        {"user": "\n\n", "assistant": "\n\n"},
        "",
    ),
}
TOKENIZER = byte_level(None)
TEMPLATES = {name: ChatTemplate(TOKENIZER, style.template) for name, style in STYLES.items()}


def separators(style: Style) -> list[str]:
    """What the template writes between two turns, in pieces and whole."""
    pieces = {*style.headers.values(), *style.ends.values(), style.opening}
    whole = {end + header for end in style.ends.values() for header in style.headers.values()}
    return sorted((pieces | whole) - {""})


def contents(name: str) -> st.SearchStrategy[str]:
    words = ["", "Link", "Zelda", " ", "\n", "user", "\ue0000\ue001", "\ue000", "{{ x }}", *separators(STYLES[name])]
    return st.lists(st.sampled_from(words), max_size=5).map("".join)


@st.composite
def conversations(draw, name: str):
    """One to five turns, of which some say the same."""
    said = draw(st.lists(contents(name), min_size=1, max_size=3))
    style = STYLES[name]
    ask, answer = (style.ends[a] + style.headers[b] for a, b in (("assistant", "user"), ("user", "assistant")))
    said += [f"{one}{ask}{said[0]}{answer}{said[-1]}" for one in said[:2]]  # a turn that says whole turns
    drawn = draw(st.lists(st.sampled_from(said), min_size=1, max_size=5))
    first = draw(st.sampled_from(["user", "system"])) if "system" in STYLES[name].headers else "user"
    roles = ["user", "assistant"] * 3 if first == "user" else ["system", *["user", "assistant"] * 3]
    return [{"role": role, "content": content} for role, content in zip(roles, drawn, strict=False)]


def rendered(name: str, turns) -> tuple[str, list[Place]]:
    """The rendering and the places known by hand; of "plain", the last end is left out, as the template does."""
    text, places = STYLES[name].by_hand(turns)
    text = text.removesuffix("\n") if name == "plain" else text
    assert TEMPLATES[name].text(turns) == text
    return text, places


def answers(turns) -> list[int]:
    return [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]


def found_in(name: str, turns, wanted=None, text=None) -> list[Place]:
    text = TEMPLATES[name].text(turns) if text is None else text
    return place_turns(
        TEMPLATES[name].text, turns, text, answers(turns) if wanted is None else wanted, STYLES[name].closing
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", STYLES)
def test_every_answer_is_found_where_it_was_put(name, data):
    turns = data.draw(conversations(name))
    text, places = rendered(name, turns)
    found = found_in(name, turns)
    assert [place[:3] for place in found] == [places[at][:3] for at in answers(turns)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", STYLES)
def test_places_hold_their_content_do_not_overlap_and_include_what_closes_them(name, data):
    turns = data.draw(conversations(name))
    text, _ = rendered(name, turns)
    found = found_in(name, turns)
    for place in found:
        content = turns[place.turn]["content"]
        assert text[place.start : place.content_stop] == (content.strip() if STYLES[name].trims else content)
        assert text[place.content_stop : place.stop] == STYLES[name].closing
    ends = [at for place in found for at in (place.start, place.stop)]
    assert ends == sorted(ends)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", STYLES)
def test_tiles_hold_the_whole_text_and_every_turn_its_own_words(name, data):
    turns = data.draw(conversations(name))
    text, places = rendered(name, turns)
    spoken = found_in(name, turns)
    tiles = tiled(TEMPLATES[name].text, turns, text, spoken, STYLES[name].closing)
    ends = [at for tile in tiles for at in (tile.start, tile.stop)]
    held = {at for tile in tiles for at in range(tile.start, tile.stop)}
    assert ends == sorted(ends), "no two overlap"
    assert not "".join(letter for at, letter in enumerate(text) if at not in held).strip()
    assert [tile for tile in tiles if tile.turn in answers(turns)] == spoken
    for place in places:
        own = {at for tile in tiles if tile.turn == place.turn for at in range(tile.start, tile.stop)}
        assert own >= {at for at in range(place.start, place.content_stop) if not text[at].isspace()}


def test_tiles_hold_what_a_template_says_before_the_first_turn_and_after_the_last():
    source = "Be brief. {% for m in messages %}({{ m.content }}){% endfor %} Go on."
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Link"}]
    template = ChatTemplate(TOKENIZER, source)
    text = template.text(turns)
    spoken = place_turns(template.text, turns, text, [1], ") Go on.")
    tiles = tiled(template.text, turns, text, spoken, ") Go on.")
    assert [(tile.turn, text[tile.start : tile.stop]) for tile in tiles] == [
        (0, "Be brief. (Who?)("),
        (1, "Link) Go on."),
    ]


def test_an_answer_that_is_not_trained_is_a_turn_among_the_others():
    turns = [
        {"role": role, "content": content}
        for role, content in zip(["user", "assistant"] * 2, ["Who?", "Zelda", "Sure?", "Link"], strict=True)
    ]
    text, _ = rendered("chatml", turns)
    spoken = found_in("chatml", turns, [3])
    tiles = tiled(TEMPLATES["chatml"].text, turns, text, spoken, "<|end|>")
    assert [text[place.start : place.stop] for place in spoken] == ["Link<|end|>"]
    assert [tile.turn for tile in tiles] == [0, 1, 2, 3]
    assert "Zelda" in text[tiles[1].start : tiles[1].stop] and "Sure?" in text[tiles[2].start : tiles[2].stop]


# Templates that do more than put content between words


def spoken_by(source: str, turns, closing: str = "<|end|>") -> list[str]:
    """What is found of each answer."""
    template = ChatTemplate(TOKENIZER, source)
    text = template.text(turns)
    places = place_turns(template.text, turns, text, answers(turns), closing)
    assert [place.turn for place in places] == answers(turns)
    assert all(text[place.content_stop : place.stop] == closing for place in places)
    return [text[place.start : place.content_stop] for place in places]


def asked_twice(first: dict, last: dict) -> list[dict]:
    answered = [{"role": "assistant"} | first, {"role": "assistant"} | last]
    return [{"role": "user", "content": "Who?"}, answered[0], {"role": "user", "content": "Sure?"}, answered[1]]


def framed(words: str) -> str:
    """A template that writes `words` as the content of an answer."""
    return (
        "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'user' %}{{ m.content }}{% else %}"
        + words
        + "{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )


DROPS = framed(
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endif %}"
)
FILLS = framed(  # an empty thought where there is none, as Qwen3 writes it before the last answer
    "{% if loop.last and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)


@pytest.mark.parametrize("source", [DROPS, FILLS])
def test_a_thought_before_the_last_answer_is_part_of_it(source):
    thought = "<think>\nLink or Zelda?\n</think>\n\nLink."
    turns = asked_twice({"content": "Zelda."}, {"content": thought})
    assert spoken_by(source, turns) == ["Zelda.", thought]


def test_of_an_earlier_answer_what_is_left_is_found():
    turns = asked_twice({"content": "<think>\nHm.\n</think>\n\nZelda."}, {"content": "<think>\nSo.\n</think>\n\nLink."})
    assert spoken_by(DROPS, turns) == ["Zelda.", "<think>\nSo.\n</think>\n\nLink."]


def test_reasoning_and_calls_that_a_template_writes_around_content_are_part_of_the_answer():
    source = framed(
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
        "{% for call in m.tool_calls %}<call>{{ call.arguments | tojson }}</call>{% endfor %}"
    )
    turns = asked_twice(
        {"content": "Zelda.", "reasoning_content": "Hm."},
        {"content": "", "tool_calls": [{"arguments": {"name": "Link"}}]},
    )
    assert spoken_by(source, turns) == ["<think>Hm.</think>Zelda.", '<call>{"name": "Link"}</call>']


def test_words_that_a_template_rewrites_are_found():
    turns = asked_twice({"content": "Zelda."}, {"content": " Link. "})
    assert spoken_by(framed("{{ m.content | upper }}"), turns) == ["ZELDA.", " LINK. "]
    assert spoken_by(framed("{{ m.content | trim }}"), turns) == ["Zelda.", "Link."]
    counted = spoken_by(framed("({{ m.content | length }} letters) {{ m.content }}"), turns)
    assert counted == ["(6 letters) Zelda.", "(7 letters)  Link. "]


def test_an_answer_that_a_template_says_twice_is_found_whole():
    turns = asked_twice({"content": "Zelda."}, {"content": "Link."})
    found = spoken_by(framed("{{ m.content }}, {{ m.content }}!"), turns, closing="!<|end|>")
    assert found == ["Zelda., Zelda.", "Link., Link."]


def test_an_answer_that_is_left_out_has_no_place():
    template = ChatTemplate(TOKENIZER, framed("{{ m.content if loop.last else '' }}"))
    turns = asked_twice({"content": "Zelda."}, {"content": "Link."})
    text = template.text(turns)
    places = place_turns(template.text, turns, text, [1, 3], "<|end|>")
    assert [(place.turn, text[place.start : place.content_stop]) for place in places] == [(3, "Link.")]


def test_an_answer_in_whose_place_a_template_refuses_other_words_is_found_with_its_end():
    template = ChatTemplate(TOKENIZER, framed("{% if m.content != 'Link' %}{{ raise_exception('no') }}{% endif %}Link"))
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Link"}]
    with pytest.raises(Refused):
        template.text([turns[0], turns[1] | {"content": "Zelda"}])
    text = template.text(turns)
    (place,) = place_turns(template.text, turns, text, [1], "<|end|>")
    assert text[place.start : place.stop] == "Link<|end|>\n"


def test_an_answer_has_no_place_where_a_template_refuses_all_but_the_whole():
    source = framed("{{ m.content }}").replace(
        "{% for", "{% if messages[1].content != 'Link' %}{{ no() }}{% endif %}{% for", 1
    )
    template = ChatTemplate(TOKENIZER, source)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Link"}]
    assert place_turns(template.text, turns, template.text(turns), [1], "<|end|>") == []


# Templates that mark the model's own words


def tagged(source: str, turns, wanted=None) -> list[tuple[int, str, str]]:
    """(turn, content, closing) of each place."""
    template = ChatTemplate(TOKENIZER, source)
    text, blocks = template.render(turns)
    places = place_by_tags(
        template.text, turns, text, blocks, answers(turns) if wanted is None else wanted, "<|end|>\n"
    )
    return [
        (place.turn, text[place.start : place.content_stop], text[place.content_stop : place.stop]) for place in places
    ]


def marked(words: str) -> str:
    return (
        "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + words
        + "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    )


WITH_END = marked("{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}")
WITHOUT_END = marked("{% generation %}{{ m.content }}{% endgeneration %}<|end|>\n")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_marked_words_are_taken_as_they_are_marked(data):
    turns = data.draw(conversations("chatml"))
    found = tagged(WITH_END, turns)
    assert found == [(at, turns[at]["content"], "<|end|>\n") for at in answers(turns)]


def test_marks_without_the_end_of_the_turn_leave_it_out():
    turns = asked_twice({"content": "Zelda."}, {"content": "Link."})
    assert tagged(WITHOUT_END, turns) == [(1, "Zelda.", ""), (3, "Link.", "")]


def test_of_marked_answers_those_that_are_trained_are_taken():
    turns = asked_twice({"content": "Zelda."}, {"content": "Link."})
    assert tagged(WITH_END, turns, [3]) == [(3, "Link.", "<|end|>\n")]


def test_marks_around_some_answers_belong_to_these():
    turns = asked_twice({"content": "Same."}, {"content": "Same."})
    last = marked(
        "{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|end|>\n"
    )
    first = last.replace("loop.last", "loop.index0 == 1")
    assert tagged(last, turns) == [(3, "Same.", "")]
    assert tagged(first, turns) == [(1, "Same.", "")]


def test_an_answer_may_be_marked_in_several_pieces():
    source = marked(
        "{% generation %}<think>{{ m.reasoning_content }}</think>{% endgeneration %}\n"
        "{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}"
    )
    turns = asked_twice(
        {"content": "Zelda.", "reasoning_content": "Hm."}, {"content": "Link.", "reasoning_content": "So."}
    )
    assert tagged(source, turns) == [
        (1, "<think>Hm.</think>", ""),
        (1, "Zelda.", "<|end|>\n"),
        (3, "<think>So.</think>", ""),
        (3, "Link.", "<|end|>\n"),
    ]


def test_tiles_hold_what_stands_between_the_marked_pieces_of_an_answer():
    source = marked("Thought: {{ m.reasoning_content }}\n{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}")
    template = ChatTemplate(TOKENIZER, source)
    turns = asked_twice(
        {"content": "Zelda.", "reasoning_content": "Hm."}, {"content": "Link.", "reasoning_content": "So."}
    )
    text, blocks = template.render(turns)
    spoken = place_by_tags(template.text, turns, text, blocks, [1, 3], "<|end|>\n")
    tiles = tiled(template.text, turns, text, spoken, "<|end|>\n")
    held = {at for tile in tiles for at in range(tile.start, tile.stop)}
    assert [tile for tile in tiles if tile in spoken] == spoken
    assert all(text.index(words) in held for words in ("Thought: Hm.", "Thought: So.", "Who?", "Sure?"))
