"""Where a row is read: its spans in windows, and the sequences in which a model of limited length reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.data.spans import SPAN
from hf_safefilter.model.reading_options import MEAN, ReadingOptions, tokens_of_first
from hf_safefilter.model.tokens import Span, Tokens, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_safefilter.data.conversations import Conversation

_STEP = (5, 6)  # share of a window between two starts: more overlap costs more vectors and has found no more rows

Read = tuple[int, int]
"""The tokens [start:stop] whose states are averaged."""


@dataclass(slots=True)
class TokenSequence:
    """Tokens that a model reads in one go.

    Attributes:
        ids: Token ids, int32 `(length,)`.
        reads: What is read of them.
    """

    ids: np.ndarray
    reads: tuple[Read, ...]


@dataclass(slots=True)
class RowReads:
    """How a row is read.

    Attributes:
        sequences: What the model reads; more than one for preference pairs and for rows that are too long.
        spans: What has vectors, `SPAN` `(spans,)`.
        picks: For each span and position, the index of its read among all of the row, int64 `(spans, positions)`.
        truncated: Whether the row was cut.
        reason: "" or why it cannot be read; then there are no spans.
    """

    sequences: list[TokenSequence]
    spans: np.ndarray
    picks: np.ndarray
    truncated: bool = False
    reason: str = ""


def plan_reads(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    options: ReadingOptions,
    limit: int | None,
) -> list[RowReads]:
    """Where each row is read.

    Args:
        conversations: The rows.
        tokenizer: That of the model.
        options: How rows are read.
        limit: Longest sequence of the model in tokens; `options.max_length` takes its place.
    """

    def tokens_of(rows: Sequence[Conversation], rejected: bool) -> list[Tokens]:
        return tokenise(
            tokenizer,
            rows,
            chat_template=options.chat_template,
            everything=options.spans == "all",
            rejected=rejected,
            ignore=options.ignored,
        )

    pairs = [index for index, row in enumerate(conversations) if row.rejected is not None]
    rejected = dict(zip(pairs, tokens_of([conversations[index] for index in pairs], True), strict=True))
    return [
        row_reads(
            [tokens, rejected[index]] if index in rejected else [tokens],
            options.positions,
            window=options.window,
            limit=options.max_length or limit,
            too_long=options.too_long,
        )
        for index, tokens in enumerate(tokens_of(conversations, False))
    ]


def row_reads(
    sides: Sequence[Tokens],
    positions: Sequence[str],
    *,
    window: int | None = None,
    limit: int | None = None,
    too_long: str = "windows",
) -> RowReads:
    """Where a row is read.

    A span longer than `window` is read in windows that overlap by a sixth, the last one at its end. A row longer than
    `limit` is read in several sequences, each with the beginning of the row and the tokens before its windows as
    context; so nothing of it stays unread.

    Args:
        sides: The tokens of the row; of a preference pair, those of the chosen and those of the rejected side.
        positions: Where each span is read.
        window: Tokens that a mean is taken over at most; None: a whole span.
        limit: Longest sequence in tokens; None: no limit.
        too_long: "windows", "drop" or "cut".
    """
    sequences: list[TokenSequence] = []
    spans: list[tuple[int, bool, int, int]] = []
    picks: list[list[int]] = []
    truncated = False
    for rejected, tokens in enumerate(sides):
        excess = limit is not None and len(tokens.ids) > limit
        if excess and too_long == "cut" and limit is not None:
            tokens, excess = tokens.cut(limit), False
        reason = tokens.reason or ("too_long" if excess and too_long == "drop" else "")
        if not reason and "last_prompt" in positions and any(span.start == 0 for span in tokens.spans):
            reason = "no_prompt"
        if reason:
            return RowReads([], np.empty(0, SPAN), np.empty((0, len(positions)), np.int64), reason=reason)
        widest = limit // 2 if excess and limit is not None else len(tokens.ids)
        wanted = []
        for span in tokens.spans:
            end = len(tokens.ids) if tokens.ended and span is tokens.spans[-1] else span.stop
            for start, stop in _windows(span, min(window or widest, widest)):
                spans.append((span.turn, bool(rejected), start, stop))
                wanted.append([_read(position, span, (start, stop), widest, end) for position in positions])
        distinct = sorted({read for reads in wanted for read in reads})
        pieces = [(tokens.ids, distinct, distinct)]
        if excess and limit is not None:
            pieces = _pieces(tokens.ids, distinct, limit)
        place: dict[Read, int] = {}
        for ids, originals, reads in pieces:
            first = sum(len(one.reads) for one in sequences)
            place |= {read: first + index for index, read in enumerate(originals)}
            sequences.append(TokenSequence(ids, tuple(reads)))
        picks += [[place[read] for read in reads] for reads in wanted]
        truncated |= tokens.truncated
    return RowReads(sequences, np.array(spans, SPAN), np.array(picks, np.int64), truncated)


def joined_picks(rows: Sequence[RowReads]) -> np.ndarray:
    """The reads of each span among those of all rows together, int64 `(spans, positions)`."""
    first = 0
    picks = []
    for row in rows:
        picks.append(row.picks + first)
        first += sum(len(one.reads) for one in row.sequences)
    return np.concatenate(picks)


def count_windows(tokens: int, width: int) -> int:
    """In how many windows of at most `width` tokens a span of so many tokens is read."""
    return len(_windows(Span(0, 0, tokens, tokens), width))


def _windows(span: Span, width: int) -> list[Read]:
    if span.stop - span.start <= width:
        return [(span.start, span.stop)]
    starts = [*range(span.start, span.stop - width, max(1, width * _STEP[0] // _STEP[1])), span.stop - width]
    return [(start, start + width) for start in starts]


def _read(position: str, span: Span, window: Read, widest: int, end: int) -> Read:
    """A mean is over a window; any other position is the span's, whatever the window. `end` is one past its last."""
    if position == MEAN:
        return window
    first = tokens_of_first(position)
    if first is not None:
        return span.start, min(span.start + min(first, widest), span.stop)
    place = {"last": end, "last_content": span.content_stop, "last_prompt": span.start}[position]
    return place - 1, place


def _pieces(ids: np.ndarray, reads: Sequence[Read], limit: int) -> list[tuple[np.ndarray, list[Read], list[Read]]]:
    """Sequences of at most `limit` tokens that hold all `reads`, which are sorted and at most `limit // 2` wide.

    Returns:
        For each sequence its ids, the reads that it holds as they stand in the row, and as they stand in it.
    """
    head = limit // 4  # tokens of the beginning; as many before the first read are its context
    pieces = []
    left = list(reads)
    while left:
        start, stop = left[0]
        begin = head if stop <= limit else max(head, start - limit // 4)
        end = begin + limit - head
        inside = [read for read in left if read[1] <= end and (read[0] >= begin or read[1] <= head or begin == head)]
        left = [read for read in left if read not in set(inside)]
        shift = begin - head
        shifted = [(a, b) if b <= head or not shift else (a - shift, b - shift) for a, b in inside]
        pieces.append((np.concatenate([ids[:head], ids[begin:end]]), inside, shifted))
    return pieces
