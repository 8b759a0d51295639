"""Conversations written as one text: ``Human: ... Assistant: ...``, as preference sets such as HH-RLHF hold them."""

from __future__ import annotations

import re

from hf_safefilter.data.messages import Message

_SPEAKERS = {
    "human": "user", "h": "user", "user": "user", "question": "user", "q": "user",
    "assistant": "assistant", "a": "assistant", "ai": "assistant", "bot": "assistant", "answer": "assistant",
    "system": "system",
}  # fmt: skip
_SPEAKER = r"(?P<speaker>Human|User|Assistant|AI|Bot|System|H|A|Q|Question|Answer|USER|ASSISTANT|SYSTEM)"
_FIRST = re.compile(rf"\s*{_SPEAKER}:[ \t]*")
_NEXT = re.compile(rf"\n\s*\n?{_SPEAKER}:[ \t]*")


def transcript_messages(text: str) -> list[Message] | None:
    """The messages of a transcript; None for a text that is none.

    A transcript begins with a speaker, and a user and an assistant both speak, each turn on a line of its own. A last
    turn of the assistant that is empty asks for an answer, and is left out.
    """
    first = _FIRST.match(text)
    if first is None:
        return None
    marks = [first, *_NEXT.finditer(text, first.end())]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    messages = [
        Message(_SPEAKERS[mark["speaker"].casefold()], text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    ]
    roles = [message.role for message in messages]
    if not {"user", "assistant"} <= set(roles) or roles.index("user") > roles.index("assistant"):
        return None
    return messages[:-1] if messages[-1].role == "assistant" and not messages[-1].content else messages
