"""Where a guard's verdict stands, and which tokens it is: found by writing each answer out, never assumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.errors import ModelError
from hf_safefilter.model.template import renderer, template_source
from hf_safefilter.model.tokens import Tokens, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = Conversation((("user", "Is it raining?"), ("assistant", "It is.")))

# Llama Guard 3 1B, and 4, take a turn as a list of parts, as models that also see pictures do.
_AS_PARTS = (
    "{%- set turns = namespace(all=[]) %}{%- for m in messages %}{%- set turns.all = turns.all + "
    "[{'role': m['role'], 'content': [{'type': 'text', 'text': m['content']}]}] %}{%- endfor %}"
    "{%- set messages = turns.all %}"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One way in which a row is put to the guard.

    Attributes:
        template: renders the row, and the answers before the verdict, up to where the verdict would follow.
        back: for each answer, how many tokens before the end of the row it is predicted.
        given: for each answer but the verdict, the place of its word among the words.
        guideline: number of the policy that is asked about.
    """

    template: str
    back: tuple[int, ...]
    given: tuple[int, ...]
    guideline: int


@dataclass(frozen=True, slots=True)
class Asks:
    """All the ways in which a row is put to the guard.

    Attributes:
        asks: one, but for guards that answer other questions first, or that judge by several policies.
        tokens: for each answer, the token that each word starts with.
    """

    asks: tuple[Ask, ...]
    tokens: tuple[tuple[int, ...], ...]


def plan(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    leads: Sequence[str],
    guidelines: Sequence[str],
    chat_template: str | None,
) -> Asks:
    """Find out how a guard is asked.

    Args:
        tokenizer: of the guard.
        words: all words that an answer may be.
        leads: what the guard writes before each answer.
        guidelines: policies for a template that takes one.
        chat_template: for a guard that has none.

    Raises:
        ModelError: no template, one that leaves out the row, or words that start with the same token.
    """
    base = _base(tokenizer, chat_template)
    leads = [_without_what_is_there(tokenizer, base, leads[0]), *leads[1:]]
    asks, tokens = [], None
    for number, guideline in enumerate(guidelines or [None]):
        head = base if guideline is None else f"{{%- set guideline = {json.dumps(guideline)} %}}{base}"
        for given in product(range(len(words)), repeat=len(leads) - 1):
            written, lengths, found = "", [], []
            for place, lead in enumerate(leads):
                before, first = _answer(tokenizer, head, written + lead, words)
                lengths.append(len(_ids(tokenizer, head, before)))
                found.append(first)
                written += lead + (words[given[place]] if place < len(given) else "")
            back = tuple(lengths[-1] - length for length in lengths)
            asks.append(Ask(head + _written(before), back, given, number))
            tokens = tokens or tuple(found)
    return Asks(tuple(asks), tokens)


def put(
    tokenizer: PreTrainedTokenizerBase, asks: Asks, rows: Sequence[Conversation], max_length: int | None
) -> Iterator[tuple[Ask, list[Tokens]]]:
    """The rows as the guard reads them, for each way in which they are put."""
    for ask in asks.asks:
        yield ask, tokenise(tokenizer, rows, position="last", max_length=max_length, chat_template=ask.template)


def _base(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """The guard's template, made to end where the guard would speak, and to take turns in the form it shows."""
    source = template_source(tokenizer, chat_template)
    if source is None:
        raise ModelError("this guard has no chat template", fix="pass chat_template=, as its card describes it")
    source = "{%- set add_generation_prompt = true %}" + source
    for template in (source, _AS_PARTS + source):
        if not renderer(tokenizer, template).render(_SAMPLE.messages).reason:
            return template
    raise ModelError(
        "the guard's chat template does not show the response that is to be judged",
        fix="pass chat_template=, as its card describes it",
    )


def _without_what_is_there(tokenizer: PreTrainedTokenizerBase, base: str, lead: str) -> str:
    text = renderer(tokenizer, base).render(_SAMPLE.messages).text
    return "" if lead and text.endswith(lead) else lead


def _answer(
    tokenizer: PreTrainedTokenizerBase, head: str, written: str, words: Sequence[str]
) -> tuple[str, tuple[int, ...]]:
    """What is written before an answer, and the token that each word then starts with.

    Most tokenizers make one token of a word and the space before it, so the space is left to the word; where a space is
    a token of its own, it is written.

    Raises:
        ModelError: two words start with the same token, or one is not in the vocabulary.
    """
    found: list[int] = []
    for before in dict.fromkeys((written.rstrip(" "), written)):
        context = _ids(tokenizer, head, before)
        whole = [_ids(tokenizer, head, written + word) for word in words]
        if all(ids[: len(context)] == context and len(ids) > len(context) for ids in whole):
            found = [ids[len(context)] for ids in whole]
            if len(set(found)) == len(words) and tokenizer.unk_token_id not in found:
                return before, tuple(found)
    names = tokenizer.convert_ids_to_tokens(found) if found else ["joined with what stands before it"] * len(words)
    raise ModelError(
        "this guard has no tokens by which its verdicts could be told apart",
        found=", ".join(f"{word!r}: {name}" for word, name in zip(words, names, strict=True)),
        fix="pass unsafe= and safe= as the guard spells its verdict, or preset= of its family",
    )


def _ids(tokenizer: PreTrainedTokenizerBase, head: str, written: str) -> list[int]:
    (row,) = tokenise(tokenizer, [_SAMPLE], position="last", max_length=None, chat_template=head + _written(written))
    return row.ids.tolist()


def _written(text: str) -> str:
    """Jinja that writes `text`, whatever letters it holds."""
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
