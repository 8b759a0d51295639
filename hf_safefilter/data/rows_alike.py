"""Rows written in the shape of others: a prompt and an answer, in the columns and words of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.messages import parsed
from hf_safefilter.data.shapes import IGNORE, Shape, mapped_shape, shape_of
from hf_safefilter.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

_SPELLINGS = (("role", "content"), ("from", "value"))


def rows_alike(
    sample: Mapping[str, Any],
    features: Features,
    pairs: Iterable[tuple[str, str]],
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """A data set of prompts and answers that is read as such.

    Args:
        sample: A row whose shape and words are taken over; columns that hold nothing said are left empty.
        features: Features of the result.
        pairs: Prompts and answers.
        columns: What stands where, for rows of no known shape.

    Raises:
        DataError: A prompt and an answer cannot be written in this shape.
    """
    from datasets import Dataset

    said = list(pairs)
    mapping = {key: name for key, name in (columns or {}).items() if key != IGNORE}
    filled = frozenset(name for name, cell in sample.items() if cell not in (None, "", [], {}))
    shape = mapped_shape(list(features), mapping) if mapping else shape_of(filled)
    rows: list[dict[str, Any]] = []
    if shape is not None and shape.chosen is None:
        rows = [dict.fromkeys(features) | _cells(shape, sample, *pair) for pair in said]
    try:
        written = Dataset.from_list(rows, features=features)
        read = [
            [(turn.role, turn.content) for turn in conversation.messages]
            for conversation in as_conversations(written, columns)
            if not conversation.reason
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _impossible(shape) from error
    if not rows or read != [[("user", prompt), ("assistant", answer)] for prompt, answer in said]:
        raise _impossible(shape)
    return written


def _cells(shape: Shape, sample: Mapping[str, Any], prompt: str, answer: str) -> dict[str, Any]:
    """The cells that hold what is said."""
    if shape.turns is not None:
        return {shape.turns: _turns(sample[shape.turns], (("user", prompt), ("assistant", answer)))}
    if shape.response is None or not shape.prompt:
        return {}
    cells = {shape.prompt[0]: prompt, shape.response: answer}
    for column, role in ((shape.prompt[0], "user"), (shape.response, "assistant")):
        if not isinstance(sample[column], str):
            cells[column] = _turns(sample[column], ((role, cells[column]),))
    return cells


def _turns(like: Any, said: Iterable[tuple[str, str]]) -> Any:
    """Turns in the form of a cell that holds some: a list, JSON of one, or lists of roles and of contents."""
    if isinstance(like, str):
        return json.dumps(_turns(parsed(like), said), ensure_ascii=False)
    if isinstance(like, Mapping):
        turns = _turns([dict(zip(like, cells, strict=True)) for cells in zip(*like.values(), strict=True)], said)
        return {key: [turn[key] for turn in turns] for key in like}
    known = [turn for turn in like if isinstance(turn, Mapping)]
    role, content = next(keys for keys in _SPELLINGS if all(turn.get(keys[0]) is not None for turn in known))
    empty = dict.fromkeys(key for turn in known for key in turn)
    parts = any(isinstance(turn[content], list) for turn in known)
    return [
        empty | {role: _word(who, known, role), content: [{"type": "text", "text": text}] if parts else text}
        for who, text in said
    ]


def _word(role: str, known: Iterable[Mapping[str, Any]], key: str) -> str:
    """The word by which these turns call a role."""
    words = {"user": ("user", "human"), "assistant": ("assistant", "gpt")}[role]
    used = {str(turn[key]) for turn in known}
    return next((word for word in words if word in used), words[key == "from"])


def _impossible(shape: Shape | None) -> DataError:
    return DataError(
        "a prompt and an answer cannot be added to rows of this shape",
        found="no known shape" if shape is None else shape.describe(),
        fix="leave the refusals out, or add rows of your own before filtering",
    )
