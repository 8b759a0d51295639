"""Text that stands in a column of conversation, and nowhere in what is read of the row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_safefilter.data.messages import is_turns, messages_in, parsed, strings_in

_HEADERS = (
    "below is an instruction that describes a task, paired with an input that provides further context.",
    "below is an instruction that describes a task.",
    "write a response that appropriately completes the request.",
    "### instruction:",
    "### input:",
    "### response:",
)
"""What the Alpaca header puts around a row's own words."""


def unread_texts(others: Mapping[str, Any], read: Sequence[str]) -> dict[str, list[str]]:
    """The texts of each of the columns `others` that are not made of what is read; columns without any are left out.

    A text that is a part of what is read says nothing new, nor does one that puts pieces of it together, as a `text`
    column beside instruction and output does.
    """
    pieces = sorted(filter(None, map(_folded, read)), key=len, reverse=True)
    joined = "\n".join(pieces)
    found = {
        name: [text for text in _said(cell) if not _is_known(text, pieces, joined)] for name, cell in others.items()
    }
    return {name: texts for name, texts in found.items() if texts}


def _said(cell: Any) -> list[str]:
    """The texts of a cell; of turns what they say, and not who says it."""
    turns = parsed(cell) if isinstance(cell, str) else cell
    if not is_turns(turns):
        return strings_in(cell)
    texts = [(said.role if said.fault else "", said.content or "", said.more) for said in messages_in(turns)]
    return [text for of_one in texts for text in of_one if text]


def _is_known(text: str, pieces: Sequence[str], joined: str) -> bool:
    folded = _folded(text)
    if folded in joined:
        return True
    for piece in (*pieces, *_HEADERS):  # each is taken away once, and only where it stands by itself
        folded = re.sub(rf"(?<!\w){re.escape(piece)}(?!\w)", " ", folded, count=1)
    return not folded.strip()


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
