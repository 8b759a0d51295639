"""A row of any known shape -> a conversation, and the id by which it is known ever after."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_safefilter.data.batch import Batch
from hf_safefilter.errors import DataError, MissingError, OptionError

logger = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant", "tool")
"""Roles a turn may have. Templates write a role into control tokens, so any other is not let through."""

TEXT = "text"
"""Role of the single message of a row that is plain text rather than a conversation."""

_FROM_VALUE = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"}
_ID_VERSION = "hf_safefilter/row/1"
_said: set[Shape] = set()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, in order.

    Attributes:
        messages: (role, content) pairs; the last one is the assistant turn that is scored.
        reason: "" or why the row cannot be scored: ``not_text``, ``empty_prompt``, ``empty_response``,
            ``unknown_role``, ``no_user_turn``, ``no_assistant_turn``.
    """

    messages: tuple[tuple[str, str], ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the columns of a data set hold a conversation.

    Attributes:
        name: e.g. ``prompt + response``.
        prompt: columns joined by a newline to make the user turn (empty cells are left out).
        response: column of the assistant turn.
        system: column of a system turn.
        turns: column that holds the whole conversation as a list of turns.
        text: column of plain text.
        unread: columns that a conversation could have stood in too, but is not read from.
    """

    name: str
    prompt: tuple[str, ...] = ()
    response: str | None = None
    system: str | None = None
    turns: str | None = None
    text: str | None = None
    unread: tuple[str, ...] = ()

    def describe(self) -> str:
        """One sentence for the log."""
        others = f"; not read: {', '.join(map(repr, self.unread))} (columns= can say otherwise)" if self.unread else ""
        return self._read() + others

    def _read(self) -> str:
        if self.text is not None:
            return f"rows are read as plain text from column {self.text!r}"
        if self.turns is not None and not self.prompt:
            return f"rows are read as conversations from column {self.turns!r}"
        answer = self.response or self.turns
        return f"rows are read as prompt {' + '.join(map(repr, self.prompt))} and response {answer!r}"


def shape_of(names: Sequence[str], columns: Mapping[str, str] | None = None) -> Shape:
    """The shape of a data set from its column names; said once a process in the log.

    Args:
        names: column names.
        columns: where things stand when the names do not say: ``{"prompt": ..., "response": ...}`` (and ``"system"``),
            ``{"messages": ...}`` or ``{"text": ...}``.

    Raises:
        DataError: no known shape.
        MissingError: a mapped column that is not there.
        OptionError: a mapping that makes no sense.
    """
    shape = _mapped(names, columns) if columns else _known(set(names))
    if shape is None:
        raise DataError(
            "these columns are no known shape of conversation",
            found=", ".join(names) or "no columns",
            fix='say where things stand, e.g. columns={"prompt": "question", "response": "reply"}',
        )
    if shape not in _said:
        _said.add(shape)
        logger.info(shape.describe())
    return shape


_PAIRS = (
    (("prompt",), ("completion", "response", "chosen")),
    (("instruction", "input"), ("output", "response")),
    (("instruction", "context"), ("output", "response")),
    (("instruction",), ("output", "response")),
    (("question",), ("answer",)),
)
"""Columns of the user turn, and of the assistant turn, in the order in which they are tried."""

_TURNS = ("messages", "conversations")
_SPOKEN = {*_TURNS, "system", "text", *(name for prompt, answers in _PAIRS for name in (*prompt, *answers))}
"""Every column in which something said may stand. (``rejected`` is not read on purpose, so it is not among them.)"""


def _known(names: set[str]) -> Shape | None:
    shape = _first_known(names)
    if shape is None:
        return None
    read = {*shape.prompt, shape.response, shape.system, shape.turns, shape.text}
    return replace(shape, unread=tuple(sorted((names & _SPOKEN) - read)))


def _first_known(names: set[str]) -> Shape | None:
    for turns in _TURNS:
        if turns in names:
            return Shape(turns, turns=turns)
    system = "system" if "system" in names else None
    for prompt, answers in _PAIRS:
        answer = next((name for name in answers if name in names), None)
        if answer is not None and names.issuperset(prompt):
            return Shape(" + ".join((*prompt, answer)), prompt, answer, system)
    if "chosen" in names:
        return Shape("chosen", turns="chosen")
    return Shape("text", text="text") if "text" in names else None


def _mapped(names: Sequence[str], columns: Mapping[str, str]) -> Shape:
    keys = set(columns)
    if keys not in ({"prompt", "response"}, {"prompt", "response", "system"}, {"messages"}, {"text"}):
        raise OptionError(
            f"columns names {', '.join(sorted(keys))}",
            fix='use {"prompt": ..., "response": ...} (and "system"), {"messages": ...} or {"text": ...}',
        )
    for role, name in columns.items():
        if name not in names:
            raise MissingError(
                f"columns maps {role!r} to {name!r}, which is not there",
                found=", ".join(names),
                fix="name one of these",
            )
    if "messages" in keys:
        return Shape("messages", turns=columns["messages"])
    if "text" in keys:
        return Shape("text", text=columns["text"])
    return Shape("mapped", (columns["prompt"],), columns["response"], columns.get("system"))


def conversations(batch: Batch, columns: Mapping[str, str] | None = None) -> list[Conversation]:
    """The `batch.n` conversations of a batch, one a row, in order."""
    shape = shape_of(batch.names, columns)
    if shape.text is not None:
        return [_plain_text(cell) for cell in batch.cells(shape.text)]
    if shape.turns is not None:
        return [_conversation(_turns(cell)) for cell in batch.cells(shape.turns)]
    prompts = zip(*(batch.cells(name) for name in shape.prompt), strict=True)
    systems = batch.cells(shape.system) if shape.system else [None] * batch.n
    rows = zip(prompts, batch.cells(str(shape.response)), systems, strict=True)
    return [_conversation(_from_columns(prompt, response, system)) for prompt, response, system in rows]


def as_conversations(
    rows: Iterable[Mapping[str, Any]] | Any, columns: Mapping[str, str] | None = None
) -> list[Conversation]:
    """Conversations of a data set or of a list of rows, e.g. reference rows."""
    listed = [dict(row) for row in rows]
    if not listed:
        return []
    names = list(listed[0])
    strange = next((place for place, row in enumerate(listed) if set(row) != set(names)), None)
    if strange is not None:
        raise DataError(f"row {strange} has other columns than row 0", found=", ".join(listed[strange]), fix="mend it")
    return conversations(Batch({name: [row[name] for row in listed] for name in names}), columns)


Turn = tuple[Any, Any]


def _from_columns(prompt: tuple[Any, ...], response: Any, system: Any) -> list[Turn]:
    head: list[Turn] = []
    if system is not None and not (isinstance(system, str) and not system.strip()):
        head = [("system", system)]
    if isinstance(prompt[0], (list, tuple)):  # prompt and completion may each be a list of turns
        tail = _turns(response)
        # "chosen" repeats the prompt in front of the answer in some preference sets
        before = [] if tail[: len(prompt[0])] == _turns(prompt[0]) else _turns(prompt[0])
        return head + before + tail
    parts = [part for place, part in enumerate(prompt) if place == 0 or (part is not None and part != "")]
    asked = "\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    if isinstance(response, (list, tuple)):
        tail = _turns(response)
        return head + tail if tail and tail[0] == ("user", asked) else [*head, ("user", asked), *tail]
    return [*head, ("user", asked), ("assistant", response)]


def _turns(cell: Any) -> list[Turn]:
    """(role, content) of each turn of a conversation cell; None where it is neither."""
    if not isinstance(cell, (list, tuple)):
        return [("assistant", cell if isinstance(cell, str) else None)]
    turns: list[Turn] = []
    for turn in cell:
        if not isinstance(turn, Mapping):
            turns.append((None, None))
        elif turn.get("role") is not None or "from" not in turn:
            turns.append((turn.get("role"), _content(turn.get("content"))))
        else:
            speaker = turn["from"]
            role = _FROM_VALUE.get(speaker, speaker) if isinstance(speaker, str) else None
            turns.append((role, _content(turn.get("value"))))
    return turns


def _content(content: Any) -> Any:
    """Content as text; a list of text parts is joined, anything else is not text."""
    if not isinstance(content, (list, tuple)):
        return content
    texts: list[Any] = [
        part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"
    ]
    if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(texts)


def _conversation(turns: list[Turn]) -> Conversation:
    last = max((place for place, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    kept = turns if last is None else turns[: last + 1]
    messages = tuple((_as_text(role), _as_text(content)) for role, content in kept)
    return Conversation(messages, _reason(kept, last))


def _reason(turns: list[Turn], last: int | None) -> str:
    if any(role not in ROLES for role, _ in turns):
        return "unknown_role" if all(isinstance(role, str) for role, _ in turns) else "not_text"
    if any(not isinstance(content, str) for _, content in turns):
        return "not_text"
    if last is None:
        return "no_assistant_turn"
    users = [content for role, content in turns if role == "user"]
    if not users:
        return "no_user_turn"
    if not users[-1].strip():
        return "empty_prompt"
    return "" if turns[last][1].strip() else "empty_response"


def _plain_text(cell: Any) -> Conversation:
    if not isinstance(cell, str):
        return Conversation(((TEXT, _as_text(cell)),), "not_text")
    return Conversation(((TEXT, cell),), "" if cell.strip() else "empty_response")


def _as_text(value: Any) -> str:
    """What stands in an unreadable cell, so that even such a row has an id of its own."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=_named, sort_keys=True)
    except (TypeError, ValueError):  # keys of several types, or a cell that contains itself
        return f"unreadable {type(value).__name__}"


def _named(value: Any) -> str:
    """The value's repr without its place in memory, which is another in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def row_id(conversation: Conversation) -> str:
    """32 hex digits: sha256 over the canonical JSON of the (role, content) pairs, cut to 128 bits.

    Stable over reorderings, machines and versions, and the same for the same words in another shape.
    """
    body = json.dumps([_ID_VERSION, *conversation.messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def prompt_of(conversation: Conversation) -> str:
    """The last user turn; "" for plain text."""
    return next((content for role, content in reversed(conversation.messages) if role == "user"), "")


def response_of(conversation: Conversation) -> str:
    """The assistant turn that is scored, or the plain text."""
    return next((text for role, text in reversed(conversation.messages) if role in ("assistant", TEXT)), "")
