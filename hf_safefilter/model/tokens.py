"""Conversations -> token ids, and the positions at which the model's states stand for the row.

Control tokens in user text are encoded as ordinary text, as transformers' ``sanitize_control_tokens`` does, so that no
row can close its own turn and open another. A row that is too long loses the middle of its response, never its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.data.conversations import TEXT, Conversation
from hf_safefilter.errors import DataError, ModelError, OptionError
from hf_safefilter.model.control_tokens import Offsets
from hf_safefilter.model.reading_options import POSITIONS
from hf_safefilter.model.template import PLAIN, Rendered, renderer, template_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN", "Tokens", "template_digest", "tokenise", "tokenise_prompts"]

_LEAST_RESPONSE = 2  # tokens that a cut leaves of a response: its first and its last


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
    asked: int  # length of the prompt


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
    _require_fast(tokenizer)
    using = renderer(tokenizer, chat_template)
    prompt = position == "last_prompt"
    rendered = [Rendered(reason=c.reason) if c.reason else using.render(c.messages, prompt) for c in conversations]
    before, after = _special_frame(tokenizer)
    backend = _backend(tokenizer)
    plain = [item.text for item in rendered if not item.reason and not item.marked]
    found = iter(backend.encode_batch(plain, add_special_tokens=False))
    rows = []
    for item, conversation in zip(rendered, conversations, strict=True):
        if item.reason:
            rows.append(_unread(item.reason))
            continue
        if item.marked:
            encoded = using.controls.encode(backend, item.text)
        else:
            encoding = next(found)
            encoded = encoding.ids, encoding.offsets
            if using.controls.smuggled(*encoded, item.text):
                encoded = None
        if encoded is None:
            rows.append(_unread("control_token"))
            continue
        ids, offsets = encoded
        framed = chat_template == PLAIN or conversation.messages[-1][0] == TEXT
        one = _located(ids, offsets, item, (before, after) if framed else ([], []))
        rows.append(_placed(one, position, max_length))
    return rows


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat_template: str | None = None
) -> list[np.ndarray]:
    """Token ids of prompts as the model is asked them, up to the header after which it answers.

    Args:
        tokenizer: a fast one.
        prompts: one user turn each; control tokens in them are encoded as ordinary text.
        chat_template: as in `tokenise`.

    Returns:
        int32 arrays, in the order of the prompts.

    Raises:
        DataError: a prompt that is empty, or that the template or the tokenizer cannot take.
    """
    _require_fast(tokenizer)
    using = renderer(tokenizer, chat_template)
    backend = _backend(tokenizer)
    before = _special_frame(tokenizer)[0] if chat_template == PLAIN else []
    found = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"prompt {number} is empty or no text", fix="remove it")
        item = using.ask([("user", prompt)])
        encoded = None if item.reason else using.controls.encode(backend, item.text)
        if encoded is None:
            raise DataError(
                f"prompt {number} cannot be put to this model", found=item.reason or "control_token", fix="remove it"
            )
        found.append(np.asarray([*before, *encoded[0]], dtype=np.int32))
    return found


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text",
            fix="use a model with a tokenizer.json",
        )


def _located(ids: list[int], offsets: Offsets, item: Rendered, frame: tuple[list[int], list[int]]) -> _Encoded:
    """The ids in their frame, with the places of the response and of the end of the prompt among them."""
    before, after = frame
    first, last = _span(offsets, item.start, item.stop)
    asked = first if item.asked == item.start else _span(offsets, item.asked, item.stop)[0]
    shift = len(before)
    return _Encoded([*before, *ids, *after], first + shift, last + shift, asked + shift)


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
        "last_prompt": (one.asked - 1, one.asked),
    }
    start, stop = spans[position]
    if start < 0:
        return _unread("no_prompt")
    return Tokens(np.asarray(ids, dtype=np.int32), start, stop, bool(excess))


def _unread(reason: str) -> Tokens:
    return Tokens(np.empty(0, np.int32), reason=reason)


def _span(offsets: Offsets, start: int, stop: int) -> tuple[int, int]:
    """First token, and one past the last, that hold characters of [start:stop].

    Where a tokenizer trims whitespace off its offsets, a token of whitespace alone holds nothing and stands at its end.
    """
    within = [
        place for place, (begin, end) in enumerate(offsets) if end > start and (begin < stop or begin == end == stop)
    ]
    return (within[0], within[-1] + 1) if within else (0, 0)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizers object underneath, cutting and padding nothing; its switches are state, so they are set anew."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return backend


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after a text, e.g. [CLS] and [SEP]."""
    backend = _backend(tokenizer)
    whole, bare = (backend.encode("a", add_special_tokens=added).ids for added in (True, False))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
