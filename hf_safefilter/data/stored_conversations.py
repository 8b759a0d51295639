"""Conversations as JSON text: what is stored of reference rows, which may be of any shape."""

from __future__ import annotations

import json
from typing import Any

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import Message

_SIDE = "rejected"


def to_json(conversation: Conversation) -> str:
    """JSON of all that a conversation says; in ASCII: text may hold half a surrogate pair, which Arrow refuses."""
    body: dict[str, Any] = {"messages": [_stored(said) for said in conversation.messages]}
    if conversation.rejected is not None:
        body[_SIDE] = [_stored(said) for said in conversation.rejected]
    body |= {name: text for name in ("tools", "template_options", "unread") if (text := getattr(conversation, name))}
    return json.dumps(body)


def from_json(text: str) -> Conversation:
    """The conversation of such a text.

    Raises:
        ValueError, KeyError, TypeError: The text is none.
    """
    body = json.loads(text)
    rejected = body.pop(_SIDE, None)
    return Conversation(
        tuple(Message(**said) for said in body.pop("messages")),
        rejected=None if rejected is None else tuple(Message(**said) for said in rejected),
        **body,
    )


def _stored(said: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": said.role, "content": said.content}
    if said.more:
        body["more"] = said.more
    return body if said.trained else body | {"trained": False}
