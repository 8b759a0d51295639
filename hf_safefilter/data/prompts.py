"""Prompts without responses: the user turns of rows, or plain strings, for searches and studies that ask a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hf_safefilter.data.conversations import as_conversations, prompt_of
from hf_safefilter.errors import DataError

_COLUMNS = ("prompt", "instruction", "question", "text")


def prompts_in(rows: Iterable[Any]) -> tuple[str, ...]:
    """The distinct prompts of rows or plain strings, in order; a row needs no response.

    Raises:
        DataError: A row holds no prompt.
    """
    prompts: list[str] = []
    conversations: list[Mapping[str, Any]] = []
    for row in rows:
        if isinstance(row, str):
            prompts.append(row)
            continue
        column = next((name for name in _COLUMNS if isinstance(row.get(name), str)), None)
        if column is None:
            conversations.append(row)
        else:
            prompts.append(row[column])
    prompts += [prompt_of(conversation) for conversation in as_conversations(conversations)]
    if not all(prompt.strip() for prompt in prompts):
        raise DataError("a row holds an empty prompt", fix="remove the row")
    return tuple(dict.fromkeys(prompts))


def prompts_at(source: str) -> tuple[str, ...]:
    """The distinct prompts of a file, folder or Hub data set, in order.

    Raises:
        DataError: A row holds no prompt.
        IntegrityError: The source was changed while it was read.
    """
    from hf_safefilter.data.load_rows import load_rows

    loaded = load_rows(source)
    prompts = prompts_in(loaded.rows)
    loaded.require_unchanged()
    return prompts
