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
    talk,
    turns,
)

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import Message
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
        row = talk(("user", asked), ("assistant", said))
        return tokenise(TOKENIZERS[kind, name], [row])[0]

    found, clean = read(f"{asked}Link", f"{said}Link"), read("Link", "Link")
    assert not clean.reason
    if found.reason == "unread_reasoning_content":  # the template writes one thought, and leaves out others
        assert name == "reasoning" and "</think>" in said
    elif found.reason:
        # Words that only a normaliser makes a control token are no text one can keep apart: the row is not scored.
        assert found.reason == "control_token" and kind != "byte_level"
    else:
        assert count(kind, name, found.ids.tolist()) == count(kind, name, clean.ids.tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=HOSTILE)
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_plain_text_is_encoded_as_a_trainer_encodes_it_control_tokens_and_all(kind, text):
    tokenizer = TOKENIZERS[kind, "llama"]
    found = tokenise(tokenizer, [talk(("text", f"{text}Link"))])[0]
    whole = f"{text}Link".replace("\ud800", "\ufffd") + tokenizer.eos_token
    assert found.reason == ""
    assert found.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]


def leaves_words_out(tokenizer, row) -> bool:
    text = tokenizer.apply_chat_template(turns(row), tokenize=False)
    return any("".join(said.content.split()) not in "".join(text.split()) for said in row.messages)


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
    row = talk(("user", f"{asked}Link"), ("assistant", f"{said}Link"))
    found = tokenise(tokenizer, [row])[0]
    expected = tokenizer.apply_chat_template(
        turns(row), tokenize=True, sanitize_control_tokens=True, date_string="01 Jan 2025"
    )["input_ids"]
    if name == "reasoning" and leaves_words_out(tokenizer, row):
        assert found.reason == "unread_reasoning_content"
    else:
        assert (found.reason, found.ids.tolist()) == ("", expected)


def test_tokens_that_a_template_builds_from_pieces_are_control_tokens():
    tokenizer = TOKENIZERS["byte_level", "pieces"]
    row = talk(("user", "Who?"), ("assistant", "Link<|user|>Zelda"))
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert tokenise(tokenizer, [row])[0].ids.tolist().count(user) == 1
    # transformers sees only what stands in the template as it is written: this is why the test is not against it
    found = tokenizer.apply_chat_template(turns(row), tokenize=True, sanitize_control_tokens=True)["input_ids"]
    assert found.count(user) == 2


def test_the_authors_own_list_of_control_tokens_counts():
    tokenizer = byte_level(PIECES)
    tokenizer.chat_control_tokens = ["<turn>", "<|user|>"]
    row = talk(("user", "<turn>"), ("assistant", "<turn> <|user|>"))
    found = tokenise(tokenizer, [row])[0].ids.tolist()
    expected = tokenizer.apply_chat_template(turns(row), tokenize=True, sanitize_control_tokens=True)
    assert found == expected["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<turn>") not in found


def test_clean_rows_in_a_template_with_seams_are_what_transformers_makes_of_them():
    tokenizer = TOKENIZERS["byte_level", "seams"]
    row = talk(("user", "Who is the hero"), ("assistant", "Link follows"))
    found = tokenise(tokenizer, [row])[0]
    assert found.ids.tolist() == tokenizer.apply_chat_template(turns(row), tokenize=True)["input_ids"]
    (span,) = found.spans
    assert tokenizer.decode(found.ids[span.start : span.content_stop].tolist()) == "Link follows"


def test_names_by_which_a_template_looks_things_up_stay_what_they_are_beside_seams():
    """Where the ends of a row's words are marked, roles, keys and options are compared as they are."""
    tokenizer = byte_level(
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% elif mode == 'brief' %}"
        "({{ m['reasoning_content'] }}){{ m['content'] }}{% endif %}{% endfor %}"
    )
    answer = Message("assistant", "Link", more='{"reasoning_content": "Who rides?"}')
    row = Conversation((Message("user", "SEP"), answer), template_options='{"mode": "brief"}')
    found = tokenise(tokenizer, [row])[0]
    assert tokenizer.decode(found.ids.tolist()) == "[SEP](Who rides?)Link"
    assert tokenizer.convert_tokens_to_ids("[SEP]") not in found.ids.tolist()


def test_a_wall_of_control_tokens_is_encoded_piece_by_piece_once(monkeypatch):
    pieces = []
    encode = control_tokens._encode_piece
    monkeypatch.setattr(
        control_tokens, "_encode_piece", lambda *given, **how: pieces.append(1) or encode(*given, **how)
    )
    row = talk(("user", "Who?"), ("assistant", "<|end|>x" * 3000))
    found = tokenise(TOKENIZERS["byte_level", "chatml"], [row])[0]
    end = TOKENIZERS["byte_level", "chatml"].convert_tokens_to_ids("<|end|>")
    assert found.ids.tolist().count(end) == 3  # of the turns of system, user and assistant
    assert len(pieces) <= 3000 + 2  # in proportion to what is written, whatever a machine takes for it
