"""The position of a guard's verdict and the tokens of its words: found by rendering each answer, never assumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import Message
from hf_safefilter.errors import ModelError
from hf_safefilter.model.chat_template import template_source
from hf_safefilter.model.template import renderer
from hf_safefilter.model.tokens import Tokens, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = Conversation((Message("user", "Is it raining?"), Message("assistant", "It is.")))


@dataclass(frozen=True, slots=True)
class Question:
    """A question that the guard is asked about a row.

    Attributes:
        template: Renders the row, and the answers before the verdict, up to where the verdict would follow.
        back: For each answer, the number of tokens between its prediction and the end of the row.
        earlier: For each answer before the verdict, the index of its word among the words.
        guideline: Number of the policy that the guard is asked about.
    """

    template: str
    back: tuple[int, ...]
    earlier: tuple[int, ...]
    guideline: int


@dataclass(frozen=True, slots=True)
class Questions:
    """All the questions that the guard is asked about a row.

    Attributes:
        questions: One, or several for guards that answer other questions first or judge by several policies.
        tokens: For each answer, the first token of each word.
    """

    questions: tuple[Question, ...]
    tokens: tuple[tuple[int, ...], ...]


def plan(
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    leads: Sequence[str],
    guidelines: Sequence[str],
    chat_template: str | None,
    variables: str = "",
) -> Questions:
    """Find out how a guard is asked.

    Args:
        tokenizer: The guard's tokenizer.
        words: All words that an answer may be.
        leads: What the guard writes before each answer.
        guidelines: Policies for a template that takes one.
        chat_template: Chat template for a guard that has none.
        variables: JSON of further variables for the template, or "".

    Raises:
        ModelError: There is no template, it leaves out the row, or words start with the same token.
    """
    base = _base(tokenizer, chat_template, json.loads(variables or "{}"))
    leads = [_unless_rendered(tokenizer, base, leads[0]), *leads[1:]]
    questions: list[Question] = []
    tokens: tuple[tuple[int, ...], ...] = ()
    for number, guideline in enumerate(guidelines or [None]):
        head = base if guideline is None else f"{{%- set guideline = {json.dumps(guideline)} %}}{base}"
        for earlier in product(range(len(words)), repeat=len(leads) - 1):
            written, lengths, first_tokens = "", [], []
            for answer, lead in enumerate(leads):
                before, first = _answer(tokenizer, head, written + lead, words)
                lengths.append(len(_ids(tokenizer, head, before)))
                first_tokens.append(first)
                written += lead + (words[earlier[answer]] if answer < len(earlier) else "")
            back = tuple(lengths[-1] - length for length in lengths)
            questions.append(Question(head + _written(before), back, earlier, number))
            tokens = tokens or tuple(first_tokens)
    return Questions(tuple(questions), tokens)


def tokenised(
    tokenizer: PreTrainedTokenizerBase, questions: Questions, rows: Sequence[Conversation], max_length: int | None
) -> Iterator[tuple[Question, list[Tokens]]]:
    """The rows as the guard reads them, for each question."""
    for question in questions.questions:
        yield question, read_whole(tokenizer, rows, question.template, max_length)


def read_whole(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Conversation], template: str | None, max_length: int | None
) -> list[Tokens]:
    """The tokens of rows whose last turn is judged; a row longer than `max_length` is not read (``too_long``).

    Turns before the last one are context, which some guards leave out.
    """
    tokens = tokenise(tokenizer, rows, chat_template=template, ignore=("content",))
    return [Tokens.unread("too_long") if max_length and len(row.ids) > max_length else row for row in tokens]


def _base(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, variables: Mapping[str, Any]) -> str:
    """The guard's template, changed to end where the guard would answer."""
    source = template_source(tokenizer, chat_template)
    if source is None:
        raise ModelError("this guard has no chat template", fix="pass the one from its model card: `chat_template=...`")
    given = "".join(f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in variables.items())
    source = f"{{%- set add_generation_prompt = true %}}{given}{source}"
    if not renderer(tokenizer, source).render(_SAMPLE).reason:
        return source
    raise ModelError(
        "the guard's chat template does not render the response that is to be judged",
        fix="pass the one from its model card: `chat_template=...`",
    )


def _unless_rendered(tokenizer: PreTrainedTokenizerBase, base: str, lead: str) -> str:
    """`lead`, or "" if the template already renders it at its end."""
    text = renderer(tokenizer, base).render(_SAMPLE).text
    return "" if lead and text.endswith(lead) else lead


def _answer(
    tokenizer: PreTrainedTokenizerBase, head: str, written: str, words: Sequence[str]
) -> tuple[str, tuple[int, ...]]:
    """The text before an answer, and the first token of each word after it.

    In most tokenizers a word and the space before it are one token, so the text ends before the space; if a space is a
    token of its own, the text includes it.

    Raises:
        ModelError: Two words start with the same token, or one is not in the vocabulary.
    """
    first: list[int] = []
    for before in dict.fromkeys((written.rstrip(" "), written)):
        context = _ids(tokenizer, head, before)
        whole = [_ids(tokenizer, head, written + word) for word in words]
        if all(ids[: len(context)] == context and len(ids) > len(context) for ids in whole):
            first = [ids[len(context)] for ids in whole]
            if len(set(first)) == len(words) and tokenizer.unk_token_id not in first:
                return before, tuple(first)
    names = tokenizer.convert_ids_to_tokens(first) if first else ["one token with the text before it"] * len(words)
    raise ModelError(
        "this guard has no tokens that distinguish its verdicts",
        found=", ".join(f"{word!r}: {name}" for word, name in zip(words, names, strict=True)),
        fix="pass `unsafe=...` and `safe=...` as the guard spells its verdict, or `preset=...` of its family",
    )


def _ids(tokenizer: PreTrainedTokenizerBase, head: str, written: str) -> list[int]:
    (row,) = tokenise(tokenizer, [_SAMPLE], chat_template=head + _written(written))
    return row.ids.tolist()


def _written(text: str) -> str:
    """Jinja that renders `text` unchanged, whatever characters it has."""
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
