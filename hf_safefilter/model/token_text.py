"""Where each of some tokens stands in the text that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 6
"""Tokens before one that are decoded with it: bytes of one character, or a space that only the first token lacks."""


def text_of_tokens(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> tuple[str, np.ndarray]:
    """The text of n tokens, and where each of them starts in it, int64 (n + 1,), ascending; the last is the length.

    A character of several tokens belongs to the first of them. Where decoding a few tokens at a time does not make up
    the whole text, all tokens start at 0 but the end: then it is not known what is whose.
    """
    whole = _decoded(tokenizer, ids)
    starts = np.zeros(len(ids) + 1, np.int64)
    for at in range(len(ids)):
        first = max(0, at - _CONTEXT)
        before = len(_decoded(tokenizer, ids[first:at])) if at > first else 0
        starts[at + 1] = starts[at] + max(0, len(_decoded(tokenizer, ids[first : at + 1])) - before)
    if starts[-1] != len(whole):
        starts[:-1] = 0
        starts[-1] = len(whole)
    return whole, starts


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # of one list of ids
    return text
