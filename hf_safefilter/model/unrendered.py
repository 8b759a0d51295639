"""What stands in a message and not in its rendering: a trainer would not see it, and a reader neither."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hf_safefilter.data.messages import Message, parsed, strings_in
from hf_safefilter.model.chat_template import Turn
from hf_safefilter.model.control_tokens import CLOSE, OPEN

_SAYS_NOTHING = re.compile(r"[\w.:/+-]{0,64}")
"""Ids, names and kinds, which templates leave out: one word, too short to teach anything."""

_TEXT_KEYS = {"type", "text"}
_NOT_SAID = {"role", "content"}


class Unread(Exception):
    """A row that cannot be read whole; the text of the exception is the reason."""


def without_media(said: Message, ignore: Collection[str]) -> Turn:
    """The message as the template gets it: of content in parts, the text.

    Raises:
        Unread: A part that is no text and is not among `ignore`, or a text part that says something elsewhere.
    """
    turn = said.to_dict()
    if not isinstance(turn.get("content"), list):
        return turn
    texts = []
    for part in turn["content"]:
        kind = str(part.get("type", "part")) if isinstance(part, dict) else "part"
        if kind != "text":
            if kind not in ignore:
                raise Unread(f"unread_{_name(kind)}")
            continue
        for key in part.keys() - _TEXT_KEYS - set(ignore):
            if strings_in(part[key]):
                raise Unread(f"unread_{_name(key)}")
        texts.append(str(part.get("text") or ""))
    return turn | {"content": "".join(texts)}


def tools_of(text: str) -> list[Any]:
    """The tools of a JSON text.

    Raises:
        Unread: ``tools_not_json``: a trainer would fail over it.
    """
    tools = parsed(text) if text else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unread("tools_not_json")
    return tools


def require_rendered(turns: Sequence[Turn], tools: Sequence[Any], text: str, ignore: Collection[str]) -> None:
    """Raise `Unread` if something said stands not in `text`, and is not among `ignore`.

    Args:
        turns: Messages as the template got them.
        tools: Tools as the template got them.
        text: The rendering.
        ignore: Keys of messages, and "tools".
    """
    known = _Words(text)
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, str) and content not in known:
            name = "reasoning_content" if "</think>" in content else "content"
            if name not in ignore:
                raise Unread(f"unread_{name}")
        for key, value in turn.items():
            if key not in _NOT_SAID and key not in ignore and not all(said in known for said in _texts(value)):
                raise Unread(f"unread_{_name(key)}")
    if "tools" not in ignore and not all(said in known for said in _texts(tools)):
        raise Unread("unread_tools")


class _Words:
    """A rendering, asked whether it holds a text: as it stands, inside JSON, or with other whitespace."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._folded: str | None = None

    def __contains__(self, said: str) -> bool:
        said = said.strip()
        if said in self._text:
            return True
        if any(json.dumps(said, ensure_ascii=ascii)[1:-1] in self._text for ascii in (False, True)):
            return True
        if self._folded is None:
            self._folded = _folded(self._text)
        return _folded(said) in self._folded


def _texts(value: Any) -> Iterator[str]:
    return (said for said in strings_in(value) if not _SAYS_NOTHING.fullmatch(said))


def _folded(text: str) -> str:
    return "".join(text.replace(OPEN, "").replace(CLOSE, "").split())


def _name(key: str) -> str:
    """A key as part of a reason: it comes with the data, so only a plain word is repeated."""
    return key if re.fullmatch(r"\w{1,40}", key, re.ASCII) else "key"
