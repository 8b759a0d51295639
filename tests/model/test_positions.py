"""Where the response stands, by a second route: texts cut by hand and encoded up to the cut."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, FAMILIES, LLAMA, REASONING, byte_level, sentence_piece, turns

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.errors import ModelError
from hf_safefilter.model.tokens import POSITIONS, template_digest, tokenise

TOKENIZERS = {name: byte_level(template) for name, template in FAMILIES.items()}
DATE = {"date_string": "01 Jan 2025"}
ENDS = {"llama": "<|eot|>", "chatml": "<|end|>\n", "gemma": "</turn>\n", "mistral": "<eos>", "pieces": "<|end|>",
        "reasoning": "<|end|>\n"}  # fmt: skip
HEADED = [name for name in ENDS if name != "mistral"]

SPOKEN = st.text(st.sampled_from([*"aeLZ .,?!1+{}%\n\t\x00é🙂語", "\u200d"]), min_size=1, max_size=30).filter(
    lambda text: text.strip(" \t\n")
)


def read(name: str, row: Conversation, position: str = "last", max_length: int | None = None):
    return tokenise(TOKENIZERS[name], [row], position=position, max_length=max_length)[0]


def rendered(name: str, messages, **options) -> str:
    return TOKENIZERS[name].apply_chat_template(turns(messages), tokenize=False, **DATE, **options)


def encoded(name: str, text: str) -> list[int]:
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(said=st.lists(SPOKEN, min_size=2, max_size=5))
@pytest.mark.parametrize("name", ENDS)
def test_ids_are_those_of_the_chat_template(name, said):
    roles = ["user", "assistant"] * 3
    messages = tuple(zip(roles, said[: len(said) // 2 * 2], strict=False))
    found = read(name, Conversation(messages))
    expected = TOKENIZERS[name].apply_chat_template(turns(messages), tokenize=True, **DATE)["input_ids"]
    assert found.ids.tolist() == expected
    assert expected.count(TOKENIZERS[name].bos_token_id) == (name in ("llama", "gemma", "mistral"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked=SPOKEN, said=SPOKEN)
@pytest.mark.parametrize("name", ENDS)
def test_the_content_ends_where_the_end_of_the_turn_is_cut_off(name, asked, said):
    row = Conversation((("user", asked), ("assistant", said)))
    text = rendered(name, row.messages)
    assert text.endswith(ENDS[name])
    upto = encoded(name, text.removesuffix(ENDS[name]))
    content, last, mean = (read(name, row, position) for position in ("last_content", "last", "mean_response"))
    assert content.ids[: content.stop].tolist() == upto  # the control token that follows keeps them apart
    assert (content.start, mean.stop, last.stop) == (content.stop - 1, content.stop, len(last.ids))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked=SPOKEN, said=SPOKEN)
@pytest.mark.parametrize("name", HEADED)
def test_the_prompt_ends_where_the_model_would_begin_to_answer(name, asked, said):
    # White space in front may be one token with the header's own; that token is then the response's.
    assume(not said[0].isspace())
    row = Conversation((("user", asked), ("assistant", said)))
    prompt = encoded(name, rendered(name, row.messages[:1], add_generation_prompt=True))
    found = read(name, row, "last_prompt")
    assert found.ids[: found.stop].tolist()[:-1] == prompt[:-1]
    if name != "reasoning":  # whose header's newline goes on after it
        assert found.ids[: found.stop].tolist() == prompt
        assert read(name, row, "mean_response").start == len(prompt)


def test_a_token_over_the_seam_of_header_and_response_is_the_responses():
    row = Conversation((("user", "Who?"), ("assistant", "\nLink")))
    tokenizer = TOKENIZERS["chatml"]
    assert encoded("chatml", "\n\n") == [tokenizer.convert_tokens_to_ids("ĊĊ")]
    mean, prompt = read("chatml", row, "mean_response"), read("chatml", row, "last_prompt")
    assert tokenizer.decode(mean.ids[mean.start : mean.stop].tolist()) == "\n\nLink"
    assert tokenizer.decode(prompt.ids[: prompt.stop].tolist()).endswith("<|start|>assistant")


@pytest.mark.parametrize("said", ["<think>\nLink? Zelda?\n</think>\n\nThe hero.", "The hero.", "no</think>The hero."])
def test_a_response_that_the_template_takes_apart_is_found_whole(said):
    row = Conversation((("user", "Who?"), ("assistant", said)))
    mean, content, prompt = (read("reasoning", row, at) for at in ("mean_response", "last_content", "last_prompt"))
    words = TOKENIZERS["reasoning"].decode(mean.ids[mean.start : mean.stop].tolist())
    thought = said.partition("</think>")[0].removeprefix("<think>\n").strip() if "</think>" in said else ""
    assert words.strip().startswith(thought) and words.endswith("The hero.")
    assert TOKENIZERS["reasoning"].decode(content.ids[content.start : content.stop].tolist()) == "."
    before = TOKENIZERS["reasoning"].decode(prompt.ids[: prompt.stop].tolist())
    assert before == "<|start|>user\nWho?<|end|>\n<|start|>assistant\n"  # whatever the model then thinks


def test_a_template_that_leaves_the_response_out_is_a_reason():
    tokenizer = byte_level(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    row = Conversation((("user", "Who?"), ("assistant", "Link")))
    for position in POSITIONS:
        assert tokenise(tokenizer, [row], position=position, max_length=None)[0].reason == "response_not_rendered"


@pytest.mark.parametrize(
    "template", ["{{ messages[9]['content'] }}", "{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{{ 'a'.index('b') }}"]
)
def test_a_template_that_trips_over_a_row_is_a_reason(template):
    row = Conversation((("user", "Who?"), ("assistant", "Link")))
    found = tokenise(byte_level(template), [row], position="last", max_length=None)[0]
    assert (found.reason, len(found.ids)) == ("template_refused", 0)


def test_gemmas_kind_refuses_a_system_turn_and_others_take_it():
    row = Conversation((("system", "Be brief."), ("user", "Who?"), ("assistant", "Link")))
    assert read("gemma", row).reason == "template_refused"
    assert {read(name, row).reason for name in ("llama", "chatml", "pieces", "reasoning")} == {""}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(said=SPOKEN)
def test_offsets_without_white_space_say_the_same(said):
    row = Conversation((("user", "Who?"), ("assistant", said)))
    for position in POSITIONS:
        whole, trimmed = (
            tokenise(tokenizer, [row], position=position, max_length=None)[0]
            for tokenizer in (TOKENIZERS["chatml"], byte_level_trimmed)
        )
        assert (whole.start, whole.stop, whole.ids.tolist()) == (trimmed.start, trimmed.stop, trimmed.ids.tolist())


byte_level_trimmed = byte_level(CHATML, trim=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(said=SPOKEN)
def test_sentence_pieces_are_placed_like_bytes(said):
    tokenizer = sentence_piece_llama
    row = Conversation((("user", "Who?"), ("assistant", said)))
    mean = tokenise(tokenizer, [row], position="mean_response", max_length=None)[0]
    assert mean.ids.tolist() == tokenizer.apply_chat_template(turns(row.messages), tokenize=True, **DATE)["input_ids"]
    text = tokenizer.apply_chat_template(turns(row.messages), tokenize=False, **DATE)
    upto = tokenizer(text.removesuffix("<|eot|>"), add_special_tokens=False)["input_ids"]
    assert mean.ids[: mean.stop].tolist() == upto
    assert tokenizer.decode(mean.ids[mean.start : mean.stop].tolist()).strip() == said.strip()


sentence_piece_llama = sentence_piece(LLAMA)


def test_padding_truncation_and_sides_of_the_tokenizer_do_not_matter():
    rows = [Conversation((("user", "Who?"), ("assistant", "Link " * count))) for count in (1, 9)]
    plain = [tokenise(byte_level(CHATML), rows, position="mean_response", max_length=None)]
    for side in ("left", "right"):
        tokenizer = byte_level(CHATML)
        tokenizer.padding_side = tokenizer.truncation_side = side
        tokenizer(["Link", "Link Zelda"], padding=True, truncation=True, max_length=3)  # leaves its switches set
        tokenizer.split_special_tokens = True
        tokenizer("Link")
        plain.append(tokenise(tokenizer, rows, position="mean_response", max_length=None))
    seen = [[(row.ids.tolist(), row.start, row.stop) for row in found] for found in plain]
    assert seen[0] == seen[1] == seen[2]


def test_a_changed_template_or_vocabulary_is_seen_at_once():
    tokenizer, row = byte_level(CHATML), Conversation((("user", "Who?"), ("assistant", "Link<odd>")))
    first = tokenise(tokenizer, [row], position="last", max_length=None)[0].ids.tolist()
    tokenizer.add_tokens(["<odd>"], special_tokens=True)
    assert tokenise(tokenizer, [row], position="last", max_length=None)[0].ids.tolist() == first
    digest = template_digest(tokenizer, None)
    tokenizer.chat_template = REASONING
    assert tokenise(tokenizer, [row], position="last", max_length=None)[0].ids.tolist() != first
    assert template_digest(tokenizer, None) != digest


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", ENDS)
def test_a_cut_leaves_what_is_read(name, position):
    row = Conversation((("user", "Who is the hero?"), ("assistant", " ".join(f"w{number}" for number in range(99)))))
    whole, cut = read(name, row, position), read(name, row, position, 80)
    assert (len(cut.ids), cut.truncated, whole.truncated) == (80, True, False)
    if position == "mean_response":
        assert cut.start == whole.start
        assert len(cut.ids) - cut.stop == len(whole.ids) - whole.stop
    else:
        assert cut.ids[cut.start] == whole.ids[whole.start]
        place = (whole.start, whole.start - len(whole.ids))[position != "last_prompt"]
        assert cut.start == place % 80
    longest = Conversation((("user", "Who? " * 99), ("assistant", "Link")))
    assert read(name, longest, position, 80).reason == "too_long"


def test_very_long_and_very_odd_texts():
    said = "".join(map(chr, [*range(1, 0x300), *range(0xD800, 0xD900), 0x1F600, 0x10FFFF])) + "Zelda " * 50_000
    row = Conversation((("user", "\x00\ud83d\ude00\udc00"), ("assistant", said)))
    found = read("chatml", row, "last", 512)
    assert (found.reason, found.truncated, len(found.ids)) == ("", True, 512)
    text = TOKENIZERS["chatml"].decode(found.ids.tolist())
    assert "user\n\x00😀\ufffd<|end|>" in text  # a pair is the letter it stands for, a lone half is not


def test_a_template_that_is_no_template_says_where():
    row = Conversation((("user", "Who?"), ("assistant", "Link")))
    with pytest.raises(ModelError, match="line 2"):
        tokenise(byte_level("\n{% for"), [row], position="last", max_length=None)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        tokenise(Slow(), [], position="last", max_length=None)
