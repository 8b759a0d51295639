"""Which words carry the score of a row: the score of each token's own state, word by word.

The score of a probe, or a shift, is linear: the mean of its tokens' scores is what a span scores by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from hf_safefilter.columns import READ_AS, SPANS, embedding_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.ragged import Ragged, ragged_to_arrow
from hf_safefilter.data.spans import spans_to_arrow
from hf_safefilter.decide.explanations import deciding_scores
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.model import load
from hf_safefilter.model.reading_options import MEAN
from hf_safefilter.model.source import ModelKey
from hf_safefilter.model.token_text import text_of_tokens
from hf_safefilter.scores.base import SpanScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_safefilter.cache import RowVectors
    from hf_safefilter.review.row_columns import RowColumns

_WORD = re.compile(r"\s*\S+\s*")


def word_scores(rows: RowColumns, place: int) -> dict[str, Any]:
    """The words of the turns of a row that were read, as the model reads them, with a score each.

    The row is read again, by the model that has read it. Of a preference pair it is the chosen side.

    Args:
        rows: All rows.
        place: Index of the row.

    Returns:
        ``method``, and ``turns``: for each one ``turn``, its index, ``words`` and ``scores``, which may be None.

    Raises:
        OptionError: The score that decides is none of vectors, or not one of means.
        DataError: The row cannot be read.
        ModelError: Its model is not on this machine.
    """
    row = rows.row(place)
    batch = Batch(row.with_format("arrow")[:])
    (step,) = deciding_scores(batch, rows.column, rows.saved.steps)
    reader = next((known for known in rows.saved.steps if isinstance(known, EmbedLayers)), None)
    if reader is None or not isinstance(step, SpanScore):
        raise OptionError(f"{step.METHOD} does not score what a model reads", fix="decide by another score")
    if reader.positions[0] != MEAN:
        raise OptionError(f"{step.METHOD} reads a span at {reader.positions[0]}, not at its words", fix="embed at mean")
    read = reader.token_vectors(row)
    if read.reasons[0]:
        raise DataError(f"the row cannot be read: {read.reasons[0]}", fix="look at another one")
    scores = step.word_scores(step.vectors(_as_batch(read, reader, batch)).values)
    (tokens,) = reader.tokens(as_conversations(row, reader.mapping))
    tokenizer = load.tokenizer(ModelKey(reader.model, cast("str", reader.revision), reader.dtype))
    turns = []
    for turn in np.unique(read.spans["turn"][~read.spans["rejected"]]).tolist():
        mine = (read.spans["turn"] == turn) & ~read.spans["rejected"]
        at = read.spans["start"][mine]
        text, starts = text_of_tokens(tokenizer, tokens.ids[at])
        words, of_words = _by_word(text, starts, scores[mine], _cuts(tokenizer, tokens.ids[at], starts))
        turns.append({"turn": turn, "words": words, "scores": of_words})
    return {"method": step.METHOD, "turns": turns}


def _as_batch(read: RowVectors, reader: EmbedLayers, row: Batch) -> Batch:
    """One row whose spans are tokens, which was read as the row was but for that."""
    columns: dict[str, Any] = {SPANS: spans_to_arrow(Ragged(read.spans, read.offsets))}
    columns |= {embedding_column(key): ragged_to_arrow(read.of(key)) for key in reader.keys}
    if READ_AS in row.names:
        columns[READ_AS] = pa.array(row.cells(READ_AS))
    return Batch(pa.table(columns))


def _by_word(
    text: str, starts: np.ndarray, scores: np.ndarray, cuts: Sequence[int] = ()
) -> tuple[list[str], list[float | None]]:
    """Words with the space around them, as they may be shown, and the mean score of the tokens that begin in each.

    Where what may be shown has other words, as it has without a password, the text is one word.

    Args:
        text: What the tokens say.
        starts: Where each of them starts in it, and its length.
        scores: A score for each token.
        cuts: Places at which a word ends, whatever is said there, ascending.
    """
    places: list[tuple[int, int]] = []
    words: list[str] = []
    for first, last in pairwise([0, *cuts, len(text)]):
        piece = text[first:last]
        said, safe = list(_WORD.finditer(piece)), [match.group() for match in _WORD.finditer(shown(piece))]
        alike = len(said) == len(safe)
        places += [(first + match.start(), first + match.end()) for match in said] if alike else [(first, last)]
        words += safe if alike else [shown(piece)]
    pieces = [text[start:stop] for start, stop in pairwise(starts)]
    # a token that begins with a space is of the word after it
    begins = [start + len(piece) - len(piece.lstrip()) for start, piece in zip(starts, pieces, strict=False)]
    owners = np.searchsorted([start for start, _ in places], begins, side="right") - 1
    found: list[float | None] = []
    for number in range(len(words)):
        own = scores[owners == number]
        own = own[np.isfinite(own)]
        found.append(float(own.mean()) if len(own) else None)
    return words, found


def _cuts(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, starts: np.ndarray) -> list[int]:
    """Where control tokens, such as the one that closes a turn, start and end: they are no part of a word."""
    control = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    places = np.flatnonzero(np.isin(ids, control))
    return sorted({int(starts[place + end]) for place in places for end in (0, 1)} - {0, int(starts[-1])})
