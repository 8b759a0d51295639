"""Conversations -> token ids, and the positions at which the model's states stand for the row.

Control tokens in user text are encoded as ordinary text, as transformers' ``sanitize_control_tokens`` does, so that no
row can close its own turn and open another. A row that is too long loses the middle of its response, never its end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.model.template import CLOSE, OPEN, PLAIN, Rendered, Renderer, template_digest
from hf_safefilter.rows import TEXT, Conversation

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN", "POSITIONS", "Tokens", "template_digest", "tokenise"]

POSITIONS = ("last", "last_content", "mean_response", "last_prompt")
"""What stands for a row: the last token of the rendering (often an end token), the last token of the response, the
mean over the response, or the last token before the response."""

_LEAST_RESPONSE = 2  # tokens that a cut leaves of a response: its first and its last
_MARKED = re.compile(f"{OPEN}(.*?){CLOSE}|[{OPEN}{CLOSE}]", re.DOTALL)


@dataclass(slots=True)
class Tokens:
    """A row as the model reads it.

    Attributes:
        ids: token ids, int32 (length,).
        start: the row's vector is the mean of the states at [start:stop] ...
        stop: ... which is one position, but for ``mean_response``.
        truncated: the middle of the response was cut.
        reason: "" or why the row cannot be read; then `ids` is empty.
    """

    ids: np.ndarray
    start: int = 0
    stop: int = 0
    truncated: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Encoded:
    """Ids, and where the response lies among them."""

    ids: list[int]
    first: int
    last: int  # one past


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    position: str,
    max_length: int | None,
    chat_template: str | None = None,
) -> list[Tokens]:
    """Render and encode conversations; rows out = rows in.

    Args:
        tokenizer: of the model that will read them; a fast one.
        conversations: from `rows.conversations`.
        position: one of `POSITIONS`.
        max_length: longest row in tokens; None: no limit.
        chat_template: for a model that has none: a Jinja template, or "plain" (the tokenizer's own special tokens are
            added then; for other templates the template writes them).

    Raises:
        OptionError: no such position.
        ModelError: no template, or a tokenizer that cannot say where its tokens stand.
    """
    if position not in POSITIONS:
        raise OptionError(f"position {position!r} is not known", fix=f"use one of {', '.join(POSITIONS)}")
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text",
            fix="use a model with a tokenizer.json",
        )
    renderer = Renderer(tokenizer, chat_template)
    frame = _special_frame(tokenizer)
    rendered = [Rendered(reason=c.reason) if c.reason else renderer.render(c.messages) for c in conversations]
    plain = [place for place, item in enumerate(rendered) if not item.reason and not item.marked]
    encoded: dict[int, _Encoded | None] = {}
    found = _backend(tokenizer).encode_batch([rendered[place].text for place in plain], add_special_tokens=False)
    for place, encoding in zip(plain, found, strict=True):
        item = rendered[place]
        first, last = _span([encoding.offsets], [0], item.start, item.stop)
        encoded[place] = _Encoded(encoding.ids, first, last)
    for place, item in enumerate(rendered):
        if item.marked and not item.reason:
            encoded[place] = _encode_marked(tokenizer, item)
    rows = []
    for place, (item, conversation) in enumerate(zip(rendered, conversations, strict=True)):
        one = encoded.get(place)
        if one is None:
            rows.append(_unread(item.reason or "control_token"))
            continue
        if renderer.adds_special_tokens or conversation.messages[-1][0] == TEXT:
            before, after = frame
            one = _Encoded([*before, *one.ids, *after], one.first + len(before), one.last + len(before))
        rows.append(_placed(one, position, max_length))
    return rows


def _placed(one: _Encoded, position: str, max_length: int | None) -> Tokens:
    """Cut the middle of the response if need be, and set the positions to read."""
    excess = 0 if max_length is None else max(0, len(one.ids) - max_length)
    if one.last <= one.first:
        return _unread("empty_response")
    ids, first, last = one.ids, one.first, one.last
    if excess:
        left = last - first - excess
        if left < _LEAST_RESPONSE:
            return _unread("too_long")
        head = (left + 1) // 2
        ids = ids[: first + head] + ids[first + head + excess :]
        last -= excess
    spans = {
        "last": (len(ids) - 1, len(ids)),
        "last_content": (last - 1, last),
        "mean_response": (first, last),
        "last_prompt": (first - 1, first),
    }
    start, stop = spans[position]
    if start < 0:
        return _unread("no_prompt")
    return Tokens(np.asarray(ids, dtype=np.int32), start, stop, bool(excess))


def _unread(reason: str) -> Tokens:
    return Tokens(np.empty(0, np.int32), reason=reason)


def _span(offsets: Sequence[Sequence[tuple[int, int]]], bases: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """First token, and one past the last, that hold characters of [start:stop]; `bases` shift each list's offsets."""
    first = last = None
    place = 0
    for piece, base in zip(offsets, bases, strict=True):
        for begin, end in piece:
            if begin + base < stop and end + base > start and end > begin:
                first = place if first is None else first
                last = place + 1
            place += 1
    return (first, last) if first is not None else (0, 0)


def _encode_marked(tokenizer: PreTrainedTokenizerBase, item: Rendered) -> _Encoded | None:
    """Encode a rendering piece by piece: what stands between the marks as ordinary text, the rest as it is.

    None where the tokenizer makes the control token out of ordinary text too, so that it cannot be neutralised.
    """
    ids: list[int] = []
    offsets: list[list[tuple[int, int]]] = []
    bases: list[int] = []

    def add(text: str, base: int, as_text: bool) -> None:
        piece, places = _encode_piece(tokenizer, text, as_text, first=not ids)
        ids.extend(piece)
        offsets.append(places)
        bases.append(base)

    at = 0
    for match in _MARKED.finditer(item.text):
        if match.start() > at:
            add(item.text[at : match.start()], at, as_text=False)
        word = match.group(1)
        if word:
            before = len(ids)
            add(word, match.start() + 1, as_text=True)
            if tokenizer.convert_tokens_to_ids(word) in ids[before:]:
                return None
        at = match.end()
    if at < len(item.text):
        add(item.text[at:], at, as_text=False)
    first, last = _span(offsets, bases, item.start, item.stop)
    return _Encoded(ids, first, last)


def _encode_piece(
    tokenizer: PreTrainedTokenizerBase, text: str, as_text: bool, first: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a piece; one in the middle is encoded after a newline, which keeps SentencePiece from
    putting its start-of-text space there, and the newline's tokens are taken off again."""
    backend = _backend(tokenizer, as_text)
    if not first:
        newline = backend.encode("\n", add_special_tokens=False).ids
        whole = backend.encode("\n" + text, add_special_tokens=False)
        if whole.ids[: len(newline)] == newline:
            places = [(max(0, begin - 1), end - 1) for begin, end in whole.offsets[len(newline) :]]
            return whole.ids[len(newline) :], places
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _backend(tokenizer: PreTrainedTokenizerBase, as_text: bool = False) -> Tokenizer:
    """The tokenizers object underneath, cutting and padding nothing; its switches are state, so they are set anew."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = as_text
    return backend


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after a text, e.g. [CLS] and [SEP]."""
    backend = _backend(tokenizer)
    whole, bare = (backend.encode("a", add_special_tokens=added).ids for added in (True, False))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
