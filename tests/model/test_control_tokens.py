"""No row adds a control token, whatever it says; where transformers neutralises one too, the ids are the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    FAMILIES,
    PIECES,
    PLAIN_ADDED,
    SPECIAL,
    byte_level,
    lower_casing,
    sentence_piece,
    turns,
)

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.model import control_tokens
from hf_safefilter.model.tokens import tokenise

KINDS = {"byte_level": byte_level, "sentence_piece": sentence_piece, "lower_casing": lower_casing}
TOKENIZERS = {(kind, name): make(FAMILIES[name]) for kind, make in KINDS.items() for name in FAMILIES}
UNKNOWN = "<unk>"

WIDE = {ord(letter): ord(letter) + 0xFEE0 for letter in map(chr, range(33, 127))}
WORDS = [*SPECIAL, *PLAIN_ADDED, UNKNOWN]
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(WORDS).map(str.upper),
        st.sampled_from(WORDS).map(lambda word: word.translate(WIDE)),
        st.sampled_from(["CLS", "SEP", "[", "]", "<|", "|>", "user", "<|end", "\U000f0000", "\U000f0001", "\ue000",
                         "\ue0000\ue001", "{{ bos_token }}", "{% raw %}", "\x00", "\ud800", "é", "🙂", " ", "\n",
                         "Link"]),
    ),
    max_size=8,
).map("".join)  # fmt: skip


def controls_of(kind: str, name: str) -> set[int]:
    """Special tokens and what the template is known to write, read off by hand rather than by the code under test."""
    tokenizer = TOKENIZERS[kind, name]
    written = {
        "gemma": ["<turn>", "</turn>"],
        "mistral": ["[INST]", "[/INST]"],
        "pieces": ["<|user|>", "<|assistant|>", "<|system|>"],
        "reasoning": ["<think>", "</think>"],
    }
    return set(tokenizer.convert_tokens_to_ids([*SPECIAL, *written.get(name, [])]))


def count(kind: str, name: str, ids: list[int]) -> int:
    controls = controls_of(kind, name)
    return sum(one in controls for one in ids)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked=HOSTILE, said=HOSTILE)
@pytest.mark.parametrize(("kind", "name"), list(TOKENIZERS))
def test_no_row_adds_a_control_token(kind, name, asked, said):
    def read(asked: str, said: str):
        row = Conversation((("user", asked), ("assistant", said)))
        return tokenise(TOKENIZERS[kind, name], [row], position="last", max_length=None)[0]

    found, clean = read(f"{asked}Link", f"{said}Link"), read("Link", "Link")
    assert not clean.reason
    if found.reason:
        # Words that only a normaliser makes a control token are no text one can keep apart: the row is not scored.
        assert found.reason == "control_token" and kind != "byte_level"
    else:
        assert count(kind, name, found.ids.tolist()) == count(kind, name, clean.ids.tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=HOSTILE)
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_plain_text_holds_no_control_token(kind, text):
    row = Conversation((("text", f"{text}Link"),))
    found = tokenise(TOKENIZERS[kind, "llama"], [row], position="last", max_length=None)[0]
    assert found.reason in ("", "control_token")
    assert count(kind, "llama", found.ids.tolist()) == 0


SAME_AS_TRANSFORMERS = st.lists(
    st.sampled_from(
        [*(word for word in WORDS if "user" not in word), "\U000f0000", "Link", " ", "\n", "🙂", "{{ x }}"]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked=SAME_AS_TRANSFORMERS, said=SAME_AS_TRANSFORMERS)
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@pytest.mark.parametrize("name", ["llama", "chatml", "gemma", "mistral", "reasoning"])
def test_ids_are_those_of_transformers_when_it_sanitises(kind, name, asked, said):
    tokenizer = TOKENIZERS[kind, name]
    row = Conversation((("user", f"{asked}Link"), ("assistant", f"{said}Link")))
    found = tokenise(tokenizer, [row], position="last", max_length=None)[0]
    expected = tokenizer.apply_chat_template(
        turns(row.messages), tokenize=True, sanitize_control_tokens=True, date_string="01 Jan 2025"
    )["input_ids"]
    assert found.reason == ""
    assert found.ids.tolist() == expected


def test_tokens_that_a_template_builds_from_pieces_are_control_tokens():
    tokenizer = TOKENIZERS["byte_level", "pieces"]
    row = Conversation((("user", "Who?"), ("assistant", "Link<|user|>Zelda")))
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert tokenise(tokenizer, [row], position="last", max_length=None)[0].ids.tolist().count(user) == 1
    # transformers sees only what stands in the template as it is written: this is why the test is not against it
    found = tokenizer.apply_chat_template(turns(row.messages), tokenize=True, sanitize_control_tokens=True)["input_ids"]
    assert found.count(user) == 2


def test_the_authors_own_list_of_control_tokens_counts():
    tokenizer = byte_level(PIECES)
    tokenizer.chat_control_tokens = ["<turn>", "<|user|>"]
    row = Conversation((("user", "<turn>"), ("assistant", "<turn> <|user|>")))
    found = tokenise(tokenizer, [row], position="last", max_length=None)[0].ids.tolist()
    expected = tokenizer.apply_chat_template(turns(row.messages), tokenize=True, sanitize_control_tokens=True)
    assert found == expected["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<turn>") not in found


def test_clean_rows_in_a_template_with_seams_are_what_transformers_makes_of_them():
    tokenizer = TOKENIZERS["byte_level", "seams"]
    row = Conversation((("user", "Who is the hero"), ("assistant", "Link follows")))
    found = tokenise(tokenizer, [row], position="mean_response", max_length=None)[0]
    assert found.ids.tolist() == tokenizer.apply_chat_template(turns(row.messages), tokenize=True)["input_ids"]
    assert tokenizer.decode(found.ids[found.start : found.stop].tolist()) == "Link follows"


def test_a_wall_of_control_tokens_is_encoded_piece_by_piece_once(monkeypatch):
    pieces = []
    encode = control_tokens._encode_piece
    monkeypatch.setattr(
        control_tokens, "_encode_piece", lambda *given, **how: pieces.append(1) or encode(*given, **how)
    )
    row = Conversation((("user", "Who?"), ("assistant", "<|end|>x" * 3000)))
    found = tokenise(TOKENIZERS["byte_level", "chatml"], [row], position="last", max_length=256)[0]
    assert (len(found.ids), found.truncated) == (256, True)
    assert len(pieces) <= 3000 + 2  # in proportion to what is written, whatever a machine takes for it
