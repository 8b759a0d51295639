"""Where the answer stands, by a second route: texts cut by hand and encoded up to the cut."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, FAMILIES, LLAMA, REASONING, byte_level, sentence_piece, talk, turns

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.errors import ModelError
from hf_safefilter.model.chat_template import template_digest
from hf_safefilter.model.tokens import Span, Tokens, tokenise

TOKENIZERS = {name: byte_level(template) for name, template in FAMILIES.items()}
DATE = {"date_string": "01 Jan 2025"}
ENDS = {"llama": "<|eot|>", "chatml": "<|end|>\n", "gemma": "</turn>\n", "mistral": "<eos>", "pieces": "<|end|>",
        "reasoning": "<|end|>\n"}  # fmt: skip
HEADED = [name for name in ENDS if name != "mistral"]

SPOKEN = st.text(st.sampled_from([*"aeLZ .,?!1+{}%\n\t\x00é🙂語", "\u200d"]), min_size=1, max_size=30).filter(
    lambda text: text.strip(" \t\n")
)


def read(name: str, row: Conversation) -> Tokens:
    return tokenise(TOKENIZERS[name], [row])[0]


def only_span(found: Tokens) -> Span:
    (span,) = found.spans
    return span


def rendered(name: str, said, **options) -> str:
    return TOKENIZERS[name].apply_chat_template(said, tokenize=False, **DATE, **options)


def encoded(name: str, text: str) -> list[int]:
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(said=st.lists(SPOKEN, min_size=2, max_size=5))
@pytest.mark.parametrize("name", ENDS)
def test_ids_are_those_of_the_chat_template(name, said):
    roles = ["user", "assistant"] * 3
    row = talk(*zip(roles, said[: len(said) // 2 * 2], strict=False))
    expected = TOKENIZERS[name].apply_chat_template(turns(row), tokenize=True, **DATE)["input_ids"]
    assert read(name, row).ids.tolist() == expected
    assert expected.count(TOKENIZERS[name].bos_token_id) == (name in ("llama", "gemma", "mistral"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked=SPOKEN, said=SPOKEN)
@pytest.mark.parametrize("name", ENDS)
def test_the_content_ends_where_the_end_of_the_turn_is_cut_off(name, asked, said):
    row = talk(("user", asked), ("assistant", said))
    text = rendered(name, turns(row))
    assert text.endswith(ENDS[name])
    found = read(name, row)
    span = only_span(found)
    # the control token that follows keeps them apart
    assert found.ids[: span.content_stop].tolist() == encoded(name, text.removesuffix(ENDS[name]))
    assert found.ids[: span.stop].tolist() == encoded(name, text.removesuffix("\n"))
    assert span.stop == span.content_stop + 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked=SPOKEN, said=SPOKEN)
@pytest.mark.parametrize("name", HEADED)
def test_the_prompt_ends_where_the_model_would_begin_to_answer(name, asked, said):
    # White space in front may be one token with the header's own; that token is then the response's.
    assume(not said[0].isspace())
    row = talk(("user", asked), ("assistant", said))
    prompt = encoded(name, rendered(name, turns(row)[:1], add_generation_prompt=True))
    found = read(name, row)
    start = only_span(found).start
    if name == "reasoning":  # which writes a thought without words where there is none
        assert found.ids[: len(prompt)].tolist()[:-1] == prompt[:-1]  # whose header's newline goes on after it
        assert len(prompt) <= start
    else:
        assert found.ids[:start].tolist() == prompt


@settings(max_examples=40, deadline=None, derandomize=True)
@given(said=st.lists(SPOKEN, min_size=6, max_size=6))
@pytest.mark.parametrize("name", ["llama", "chatml", "gemma", "pieces"])
def test_every_answer_of_a_conversation_stands_between_its_header_and_its_end(name, said):
    assume(not any(words[0].isspace() for words in said))
    row = talk(*zip(["user", "assistant"] * 3, said, strict=True))
    found = read(name, row)
    assert [span.turn for span in found.spans] == [1, 3, 5]
    for span in found.spans:
        before = rendered(name, turns(row)[: span.turn], add_generation_prompt=True)
        upto = rendered(name, turns(row)[: span.turn + 1])
        assert found.ids[: span.start].tolist() == encoded(name, before)
        assert found.ids[: span.content_stop].tolist() == encoded(name, upto.removesuffix(ENDS[name]))
        assert found.ids[: span.stop].tolist() == encoded(name, upto.removesuffix("\n"))


def test_a_token_over_the_seam_of_header_and_response_is_the_responses():
    row = talk(("user", "Who?"), ("assistant", "\nLink"))
    tokenizer = TOKENIZERS["chatml"]
    assert encoded("chatml", "\n\n") == [tokenizer.convert_tokens_to_ids("ĊĊ")]
    found = read("chatml", row)
    span = only_span(found)
    assert tokenizer.decode(found.ids[span.start : span.content_stop].tolist()) == "\n\nLink"
    assert tokenizer.decode(found.ids[: span.start].tolist()).endswith("<|start|>assistant")


@pytest.mark.parametrize("said", ["<think>\nLink? Zelda?\n</think>\n\nThe hero.", "no</think>The hero."])
def test_a_response_that_the_template_takes_apart_is_found_whole(said):
    found, tokenizer = read("reasoning", talk(("user", "Who?"), ("assistant", said))), TOKENIZERS["reasoning"]
    span = only_span(found)
    words = tokenizer.decode(found.ids[span.start : span.content_stop].tolist())
    thought = said.partition("</think>")[0].removeprefix("<think>\n").strip()
    assert words.startswith("<think>") and thought in words and words.endswith("The hero.")
    assert tokenizer.decode(found.ids[span.start : span.stop].tolist()) == f"{words}<|end|>"
    before = tokenizer.decode(found.ids[: span.start].tolist())
    assert before == "<|start|>user\nWho?<|end|>\n<|start|>assistant\n"  # whatever the model then thinks


ASKED_ONLY = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


def test_a_template_that_leaves_the_response_out_is_a_reason():
    found = tokenise(byte_level(ASKED_ONLY), [talk(("user", "Who?"), ("assistant", "Link"))])[0]
    assert (found.reason, len(found.ids)) == ("unread_content", 0)


def test_a_response_that_stands_in_the_prompt_alone_is_not_rendered():
    found = tokenise(byte_level(ASKED_ONLY), [talk(("user", "Who? Link?"), ("assistant", "Link"))])[0]
    assert (found.reason, len(found.ids)) == ("response_not_rendered", 0)


@pytest.mark.parametrize(
    "template", ["{{ messages[9]['content'] }}", "{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{{ 'a'.index('b') }}"]
)
def test_a_template_that_trips_over_a_row_is_a_reason(template):
    found = tokenise(byte_level(template), [talk(("user", "Who?"), ("assistant", "Link"))])[0]
    assert (found.reason, len(found.ids)) == ("template_refused", 0)


def test_gemmas_kind_refuses_a_system_turn_and_others_take_it():
    row = talk(("system", "Be brief."), ("user", "Who?"), ("assistant", "Link"))
    assert read("gemma", row).reason == "template_refused"
    assert {read(name, row).reason for name in ("llama", "chatml", "pieces", "reasoning")} == {""}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(said=SPOKEN)
def test_offsets_without_white_space_say_the_same(said):
    row = talk(("user", "Who?"), ("assistant", said))
    whole, trimmed = (tokenise(one, [row])[0] for one in (TOKENIZERS["chatml"], byte_level_trimmed))
    assert (whole.spans, whole.ids.tolist()) == (trimmed.spans, trimmed.ids.tolist())


byte_level_trimmed = byte_level(CHATML, trim=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(said=SPOKEN)
def test_sentence_pieces_are_placed_like_bytes(said):
    tokenizer = sentence_piece_llama
    row = talk(("user", "Who?"), ("assistant", said))
    found = tokenise(tokenizer, [row])[0]
    span = only_span(found)
    assert found.ids.tolist() == tokenizer.apply_chat_template(turns(row), tokenize=True, **DATE)["input_ids"]
    text = tokenizer.apply_chat_template(turns(row), tokenize=False, **DATE)
    upto = tokenizer(text.removesuffix("<|eot|>"), add_special_tokens=False)["input_ids"]
    assert found.ids[: span.content_stop].tolist() == upto
    assert tokenizer.decode(found.ids[span.start : span.content_stop].tolist()).strip() == said.strip()


sentence_piece_llama = sentence_piece(LLAMA)


def test_padding_truncation_and_sides_of_the_tokenizer_do_not_matter():
    rows = [talk(("user", "Who?"), ("assistant", "Link " * count)) for count in (1, 9)]
    seen = [tokenise(byte_level(CHATML), rows)]
    for side in ("left", "right"):
        tokenizer = byte_level(CHATML)
        tokenizer.padding_side = tokenizer.truncation_side = side
        tokenizer(["Link", "Link Zelda"], padding=True, truncation=True, max_length=3)  # leaves its switches set
        tokenizer.split_special_tokens = True
        tokenizer("Link")
        seen.append(tokenise(tokenizer, rows))
    first, *others = [[(row.ids.tolist(), row.spans) for row in found] for found in seen]
    assert others == [first, first]


def test_a_changed_template_or_vocabulary_is_seen_at_once():
    tokenizer, row = byte_level(CHATML), talk(("user", "Who?"), ("assistant", "Link<odd>"))
    first = tokenise(tokenizer, [row])[0].ids.tolist()
    tokenizer.add_tokens(["<odd>"], special_tokens=True)
    assert tokenise(tokenizer, [row])[0].ids.tolist() == first
    digest = template_digest(tokenizer, None)
    tokenizer.chat_template = REASONING
    assert tokenise(tokenizer, [row])[0].ids.tolist() != first
    assert template_digest(tokenizer, None) != digest


def test_very_long_and_very_odd_texts():
    said = "".join(map(chr, [*range(1, 0x300), *range(0xD800, 0xD900), 0x1F600, 0x10FFFF])) + "Zelda " * 50_000
    row = talk(("user", "\x00\ud83d\ude00\udc00"), ("assistant", said))
    found = read("chatml", row)
    cut = found.cut(512)
    assert (found.reason, found.truncated, cut.truncated, len(cut.ids)) == ("", False, True, 512)
    text = TOKENIZERS["chatml"].decode(found.ids.tolist())
    assert "user\n\x00😀\ufffd<|end|>" in text  # a pair is the letter it stands for, a lone half is not
    assert text.endswith("Zelda <|end|>\n")


def test_a_template_that_is_no_template_says_where():
    with pytest.raises(ModelError, match="line 2"):
        tokenise(byte_level("\n{% for"), [talk(("user", "Who?"), ("assistant", "Link"))])


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        tokenise(Slow(), [])
