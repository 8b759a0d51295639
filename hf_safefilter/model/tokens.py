"""Conversations -> token ids, and where among them the turns that are read stand.

Control tokens in a turn's text are encoded as ordinary text, as transformers' ``sanitize_control_tokens`` does, so that
no row can close its own turn and open another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.errors import DataError, ModelError
from hf_safefilter.model.control_tokens import Offsets
from hf_safefilter.model.template import Rendered, renderer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class Span(NamedTuple):
    """A turn among the tokens of a row.

    Attributes:
        turn: Its index among the messages.
        start: Its first token.
        content_stop: One past the last token of its content.
        stop: One past its last token, which closes it.
    """

    turn: int
    start: int
    content_stop: int
    stop: int


@dataclass(slots=True)
class Tokens:
    """A conversation as the model reads it.

    Attributes:
        ids: Token ids, int32 `(length,)`.
        spans: The turns that are read, in order.
        truncated: Whether its end was cut off.
        ended: Whether nothing but whitespace and the tokenizer's own tokens follow the last span.
        reason: "" or why it cannot be read; then `ids` is empty.
        masked: Tokens [start:stop] of spans that are not to be learned.
    """

    ids: np.ndarray
    spans: list[Span] = field(default_factory=list)
    truncated: bool = False
    ended: bool = False
    reason: str = ""
    masked: tuple[tuple[int, int], ...] = ()

    @classmethod
    def unread(cls, reason: str) -> Tokens:
        """Those of a row that cannot be read."""
        return cls(np.empty(0, np.int32), reason=reason)

    def cut(self, longest: int) -> Tokens:
        """The first `longest` tokens, as a trainer cuts a row; unread (``too_long``) if no span is left."""
        if len(self.ids) <= longest:
            return self
        left = [one for one in self.spans if one.start < longest]
        if not left:
            return Tokens.unread("too_long")
        spans = [Span(turn, start, min(content, longest), min(stop, longest)) for turn, start, content, stop in left]
        return Tokens(self.ids[:longest], spans, truncated=True, masked=self.masked)

    def labelled(self) -> np.ndarray:
        """Which tokens a trainer would learn, bool `(length,)`: those of the spans that are not masked.

        The first token of a row is never learned.
        """
        labels = np.zeros(len(self.ids), bool)
        for span in self.spans:
            labels[span.start : span.stop] = True
        for start, stop in self.masked:
            labels[start:stop] = False
        labels[:1] = False  # no token stands before it from which it could be predicted
        return labels


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    chat_template: str | None = None,
    everything: bool = False,
    rejected: bool = False,
    ignore: Collection[str] = (),
) -> list[Tokens]:
    """Render and encode conversations; rows out = rows in, however long they are.

    Args:
        tokenizer: That of the model that will read them; a fast one.
        conversations: From `data.conversations`.
        chat_template: As in `chat_template.template_source`; for "plain" and "raw" the tokenizer's own special tokens
            are added, for others the template writes them.
        everything: Whether all turns are spans, not the answers alone.
        rejected: Read the rejected side of preference pairs.
        ignore: What need not stand in a rendering (see `Renderer.render`).

    Raises:
        ModelError: No template, or a tokenizer that cannot say where its tokens stand.
    """
    _require_fast(tokenizer)
    rendered = []
    for one in conversations:
        if one.reason:
            rendered.append(Rendered(reason=one.reason))
            continue
        using = renderer(tokenizer, chat_template, bool(one.tools))
        rendered.append(using.render(one, rejected=rejected, everything=everything, ignore=ignore))
    controls = renderer(tokenizer, chat_template).controls if any(not item.reason for item in rendered) else None
    before, after = _special_frame(tokenizer)
    backend = _backend(tokenizer)
    plain = [item.text for item in rendered if not item.reason and not item.marked]
    found = iter(backend.encode_batch(plain, add_special_tokens=False))
    rows = []
    for item in rendered:
        if item.reason or controls is None:
            rows.append(Tokens.unread(item.reason))
            continue
        encoded: tuple[list[int], Offsets] | None
        if item.marked:
            encoded = controls.encode(backend, item.text)
        else:
            encoding = next(found)
            encoded = encoding.ids, encoding.offsets
            if not item.framed and controls.smuggled(*encoded, item.text):
                encoded = None
        if encoded is None:
            rows.append(Tokens.unread("control_token"))
            continue
        rows.append(_located(*encoded, item, (before, after) if item.framed else ([], [])))
    return rows


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat_template: str | None = None
) -> list[np.ndarray]:
    """Token ids of prompts as the model is asked them, up to the header after which it answers.

    Args:
        tokenizer: A fast one.
        prompts: One user turn each; control tokens in them are encoded as ordinary text.
        chat_template: As in `tokenise`.

    Returns:
        int32 arrays, in the order of the prompts.

    Raises:
        DataError: A prompt that is empty, or that the template or the tokenizer cannot take.
    """
    _require_fast(tokenizer)
    using = renderer(tokenizer, chat_template)
    backend = _backend(tokenizer)
    before = _special_frame(tokenizer)[0]
    found = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"prompt {number} is empty or no text", fix="remove it")
        item = using.ask(prompt)
        encoded = None if item.reason else using.controls.encode(backend, item.text)
        if encoded is None:
            raise DataError(
                f"prompt {number} cannot be put to this model", found=item.reason or "control_token", fix="remove it"
            )
        found.append(np.asarray([*(before if item.framed else []), *encoded[0]], dtype=np.int32))
    return found


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in the text",
            fix="use a model with a tokenizer.json",
        )


def _located(ids: list[int], offsets: Offsets, item: Rendered, frame: tuple[list[int], list[int]]) -> Tokens:
    """The ids in their frame, with the spans among them."""
    before, after = frame
    bounds = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    begins, ends = bounds[:, 0], bounds[:, 1]
    spans = []
    for turn, start, content_stop, stop in item.places:
        first, last = _overlapping(begins, ends, start, stop)
        inner = min(last, max(first + 1, _overlapping(begins, ends, start, content_stop)[1]))
        if first < last:
            spans.append(Span(turn, first + len(before), inner + len(before), last + len(before)))
    if not spans:
        return Tokens.unread("empty_response")
    ended = not item.text[item.places[-1].stop :].strip()
    return Tokens(np.asarray([*before, *ids, *after], dtype=np.int32), spans, ended=ended)


def _overlapping(begins: np.ndarray, ends: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """First token, and one past the last, that hold characters of [start:stop].

    Where a tokenizer trims whitespace off its offsets, a token of whitespace alone holds nothing and stands at its end.
    """
    held = (ends > start) & ((begins < stop) | ((begins == stop) & (ends == stop)))
    places = np.flatnonzero(held)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


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
