"""The id by which a row is known ever after: a digest of all that it says."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.messages import Message, parsed, says_something, without_none

VERSION = "hf_safefilter/row/2"


def row_id(conversation: Conversation) -> str:
    """32 hex digits: sha256 over the canonical JSON of all that is said, cut to 128 bits.

    Stable over reorderings, machines and versions, and the same for the same words in another shape. Keys that are
    None count as missing: Arrow gives every struct the keys of all others.
    """
    more: dict[str, Any] = {}
    for name in ("tools", "template_options", "unread"):
        if text := getattr(conversation, name):
            more[name] = without_none(parsed(text))
    if conversation.rejected is not None:
        more["rejected"] = [_identity(said) for said in conversation.rejected]
    body: list[Any] = [VERSION, *map(_identity, conversation.messages)]
    text = json.dumps([*body, more] if more else body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _identity(said: Message) -> list[Any]:
    extras = {key: without_none(value) for key, value in said.extras().items() if says_something(value)}
    more = [extras] if extras or not said.trained else []
    return [said.role, said.content, *more, *([] if said.trained else [0])]
