"""A text that a chat template has already rendered, taken apart again into its turns."""

from __future__ import annotations

from hf_safefilter.model.chat_template import Refused, Turn
from hf_safefilter.model.turn_places import Render

_SYSTEM, _USER, _ANSWER = "\ue000s\ue001", "\ue000u\ue001", "\ue000a\ue001"


def turns_in(text: str, render: Render) -> list[Turn] | None:
    """The turns of `text` if `render` would write just this text for them, whitespace at the end aside; else None."""
    for system in (None, _SYSTEM):
        turns = _split(text, render, system)
        if turns is None:
            continue
        try:
            if render(turns, False).rstrip() == text.rstrip():
                return turns
        except Refused:
            continue
    return None


def _split(text: str, render: Render, system: str | None) -> list[Turn] | None:
    """The turns between the words that the template writes around stand-ins."""
    first: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
    talk = [_turn("user", _USER), _turn("assistant", _ANSWER)]
    try:
        once, twice = render([*first, *talk], False), render([*first, *talk, *talk], False)
    except Refused:
        return None
    if system is not None and (system not in once or _USER not in once):
        return None
    before, _, rest = twice.partition(_USER)
    asking, _, rest = rest.partition(_ANSWER)
    between = rest.partition(_USER)[0]
    closing = once.rpartition(_ANSWER)[2].rstrip()
    head, joint = (before, "") if system is None else before.split(system, 1)
    if not asking or not between or not text.startswith(head) or not text.rstrip().endswith(closing):
        return None
    body = text[len(head) :].rstrip()
    body = body[: len(body) - len(closing)]
    turns: list[Turn] = []
    if system is not None:
        content, found, body = body.partition(joint)
        if not found or not joint:
            return None
        turns.append({"role": "system", "content": content})
    for exchange in body.split(between):
        question, found, answer = exchange.partition(asking)
        if not found:
            return None
        turns += [_turn("user", question), _turn("assistant", answer)]
    return turns


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}
