"""A message as a chat template is handed it: role, content, and every other key that a template may render.

What is said is kept whole: reasoning, tool calls, names, parts that are no text. Only keys that are None are left out,
at any depth, as TRL's `remove_none_values` leaves them out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_safefilter.data.plain import as_turns

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that a turn may have. Templates write a role into control tokens, so any other is not let through."""

ALIASES = {
    "human": "user", "user_message": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
    "bot": "assistant", "ai": "assistant", "claude": "assistant", "function_call": "assistant",
    "tool_call": "assistant", "tool_calls": "assistant",
    "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
    "tool_result": "tool", "ipython": "tool",
}  # fmt: skip
"""Other names of these roles in the formats people have."""

TRAINED_KEYS = ("weight", "train", "training")
"""Keys by which a turn says whether it is trained on: OpenAI's weight, axolotl's train and training."""

_MESSAGE_KEYS = ("role", "content", "from", "value", *TRAINED_KEYS)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: One of `ROLES`, or whatever stands there, which makes the row unreadable.
        content: Its text; None where it has none (a turn of tool calls alone).
        more: JSON of its other keys in their own order, "" where there are none: ``tool_calls``,
            ``reasoning_content``, ``name``, and ``content`` again where it holds parts that are no text.
        trained: Whether a trainer would learn it, if it is an assistant turn.
        fault: "" or why it cannot be read: ``unknown_role``, ``not_text``.
    """

    role: str
    content: str | None
    more: str = ""
    trained: bool = True
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The message as a chat template gets it, new each time."""
        body: dict[str, Any] = {"role": self.role}
        if self.content is not None:
            body["content"] = self.content
        return body | json.loads(self.more) if self.more else body

    def extras(self) -> dict[str, Any]:
        """The other keys."""
        return dict(json.loads(self.more)) if self.more else {}


def message(turn: Any) -> Message:
    """A message from a turn in either spelling: ``role`` and ``content``, or ``from`` and ``value``.

    A turn in both spellings is read by the first, and the second is kept among the other keys, where it counts as
    unread unless the template renders it.
    """
    if not isinstance(turn, Mapping):
        return Message("", as_text(turn), fault="not_text")
    spelled = "role" if turn.get("role") is not None or "from" not in turn else "from"
    role, fault = _role(turn.get(spelled))
    content, parts = _content(turn.get("content" if spelled == "role" else "value"))
    used = {"role", "content"} if spelled == "role" else {"from", "value"}
    extras = {str(key): value for key, value in turn.items() if key not in {*used, *TRAINED_KEYS} and value is not None}
    if parts is not None:
        extras["content"] = parts
    if content is None and not any(map(says_something, extras.values())):
        fault = fault or "not_text"
    return Message(role, content, json_of(extras) if extras else "", _is_trained(turn), fault)


def messages_in(cell: Any, alone: str = "assistant") -> list[Message]:
    """The messages of a cell: a list of turns, a struct of lists, one turn, JSON text of any of these, or plain text.

    Args:
        cell: A plain value (see `data.plain`).
        alone: Role of plain text.
    """
    cell = as_turns(_turns_in(cell))
    if isinstance(cell, Mapping):
        return [message(cell)]
    if isinstance(cell, Sequence) and not isinstance(cell, (str, bytes)):
        return [message(turn) for turn in cell]
    if isinstance(cell, str):
        return [Message(alone, cell)]
    return [Message(alone, as_text(cell), fault="not_text")]


def as_text(value: Any) -> str:
    """What stands in an unreadable cell, so that even such a row has an id of its own."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=_named, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # keys of several types, or a cell that contains itself
        return f"unreadable {type(value).__name__}"


def is_blank(text: str) -> bool:
    """Whether a text has no letter that one sees: whitespace and marks of zero width alone."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def strings_in(value: Any) -> list[str]:
    """Every text in a value, at any depth."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in strings_in(inner)]
    if isinstance(value, (list, tuple)):
        return [text for inner in value for text in strings_in(inner)]
    return []


def _role(given: Any) -> tuple[str, str]:
    if not isinstance(given, str):
        return as_text(given), "not_text"
    if given in ROLES:
        return given, ""
    name = given.strip().casefold().replace("-", "_").replace(" ", "_")
    name = ALIASES.get(name, name)
    return (name, "") if name in ROLES else (given, "unknown_role")


def _content(given: Any) -> tuple[str | None, Any]:
    """Content as text, and the parts as they are where they are not text alone."""
    if given is None or isinstance(given, str):
        return given, None
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, (list, tuple)):
        return as_text(given), None
    texts = [_text_of(part) for part in given]
    if all(text is not None for text in texts):
        return "".join(text for text in texts if text is not None), None
    return None, list(given)


def _text_of(part: Any) -> str | None:
    """The text of a part that is text and nothing else."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    body = {key: value for key, value in part.items() if says_something(value) or key == "text"}
    text = body.pop("text", None)
    return text if isinstance(text, str) and body == {"type": "text"} else None


def _is_trained(turn: Mapping[str, Any]) -> bool:
    for key in TRAINED_KEYS:
        value = turn.get(key)
        if value is not None:
            return not (value in (0, 0.0, False) or str(value).strip().casefold() in ("false", "no", "0"))
    return True


def says_something(value: Any) -> bool:
    """Whether a cell or a key holds anything: None, "", [] and {} do not."""
    return value is not None and value != [] and value != {} and value != ""


def _turns_in(cell: Any) -> Any:
    """A cell that is JSON text of turns as these turns; any other as it is."""
    if not isinstance(cell, str) or not re.match(r"\s*[\[{]\s*[\[{\"]", cell):
        return cell
    value = parsed(cell)
    return value if is_turns(value) else cell


def parsed(text: str) -> Any:
    """The value of a JSON text; a text that is none, as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_turns(value: Any) -> bool:
    """Whether a value is turns: a list of dicts that each name a speaker, or a struct of such lists."""
    value = as_turns(value)
    turns = value if isinstance(value, (list, tuple)) else [value]
    return bool(turns) and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns)


def json_of(value: Any) -> str:
    """JSON of a value in its own order of keys, without those that are None; what JSON does not know is named."""
    try:
        return json.dumps(without_none(value), ensure_ascii=False, default=_named, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return json.dumps({"unreadable": type(value).__name__})


def without_none(value: Any) -> Any:
    """A value without the keys that are None, at any depth: Arrow gives every struct the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _named(value: Any) -> str:
    """The value's repr without its place in memory, which is another in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
