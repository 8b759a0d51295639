"""Where the turns of a conversation stand in its rendering, found by rendering it again with other words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import NamedTuple

from hf_safefilter.model.chat_template import Refused, Turn


class Place(NamedTuple):
    """A turn in a rendering, in characters.

    Attributes:
        turn: Its index among the messages.
        start: Where it starts.
        content_stop: Where its content ends.
        stop: Where it ends, with the token that closes it.
    """

    turn: int
    start: int
    content_stop: int
    stop: int


Render = Callable[[Sequence[Turn], bool], str]
"""Renders turns, with or without the header of an answer at the end; raises `Refused`."""


def place_turns(render: Render, turns: Sequence[Turn], text: str, wanted: Sequence[int], closing: str) -> list[Place]:
    """The places of the `wanted` turns in `text`, in order; those that cannot be found are left out.

    Args:
        render: Renders turns.
        turns: All turns.
        text: Their rendering.
        wanted: Indices of turns, ascending.
        closing: What the template writes after the content of a last answer.
    """
    found = _by_one_frame(render, turns, text, wanted)
    if found is None:
        each = [_by_one_frame(render, turns, text, [turn]) or _by_itself(render, turns, text, turn) for turn in wanted]
        found = [place for places in each for place in places]
    return [Place(turn, start, stop, stop + _closed(text[stop:], closing)) for turn, start, stop in found]


def place_by_tags(
    render: Render,
    turns: Sequence[Turn],
    text: str,
    blocks: Sequence[tuple[int, int]],
    wanted: Sequence[int],
    closing: str,
) -> list[Place]:
    """The places that the template itself marks as the model's words, of the `wanted` turns.

    Args:
        render: Renders turns.
        turns: All turns.
        text: Their rendering.
        blocks: Where the marked words start and stop.
        wanted: Indices of turns, ascending.
        closing: What the template writes after the content of a last answer.
    """
    owners = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    if len(owners) != len(blocks):
        starts = [(place.start, place.turn) for place in place_turns(render, turns, text, owners, closing)]
        owners = [max((turn for start, turn in starts if start < stop), default=-1) for _, stop in blocks]
    ending = closing.rstrip()
    found = []
    for turn, (start, stop) in zip(owners, blocks, strict=True):
        if turn in wanted and start < stop:
            body = text[start:stop].rstrip()
            found.append(Place(turn, start, start + len(body.removesuffix(ending)), stop))
    return found


def tiled(render: Render, turns: Sequence[Turn], text: str, answers: Sequence[Place], closing: str) -> list[Place]:
    """The places of all turns: what lies before and between `answers` belongs to the turns there, headers included."""
    by_turn: dict[int, list[Place]] = {}
    for place in answers:
        by_turn.setdefault(place.turn, []).append(place)
    others = [turn for turn in range(len(turns)) if turn not in by_turn]
    found = {place.turn: place for place in place_turns(render, turns, text, others, closing)} if others else {}
    places: list[Place] = []
    at = 0
    for turn in range(len(turns)):
        for place in by_turn.get(turn, ()):
            if places and places[-1].turn == turn - 1 and turn - 1 in others:
                places[-1] = places[-1]._replace(stop=place.start)
            elif text[at : place.start].strip():  # it could not be told from its neighbours
                places.append(Place(turn - 1 if turn - 1 in others else turn, at, place.start, place.start))
            places.append(place)
            at = place.stop
        ahead = min((place.start for place in answers if place.turn > turn), default=len(text))
        if turn in found and min(found[turn].stop, ahead) > at:
            content_stop, stop = (min(end, ahead) for end in found[turn][2:])
            places.append(Place(turn, at, content_stop, stop))
            at = stop
    if turns and text[at:].strip():
        places.append(Place(len(turns) - 1, at, len(text), len(text)))
    return places


def _closed(after: str, closing: str) -> int:
    """Number of characters of `after` that close a turn, whitespace at the end not counted."""
    return len(commonprefix([after, closing]).rstrip())


def _word_absent_from(text: str) -> str:
    number = 0
    while f"\ue000{number}\ue001" in text:
        number += 1
    return f"\ue000{number}\ue001"


def _by_one_frame(
    render: Render, turns: Sequence[Turn], text: str, wanted: Sequence[int]
) -> list[tuple[int, int, int]] | None:
    """All turns at once: the template's words around their content must be those around blank content.

    None if they are not, or if a content holds so much of them that it could end in two places.
    """
    word = _word_absent_from(text)
    try:
        frame = render([_blanked(turn, word) if at in wanted else turn for at, turn in enumerate(turns)], False)
    except Refused:
        return None
    head, *pieces = frame.split(word)
    if not pieces:
        return None if wanted else []
    if len(pieces) != len(wanted) or not text.startswith(head) or not text.endswith(pieces[-1]):
        return None
    *between, tail = pieces
    start, stop = len(head), len(text) - len(tail)
    seams = _seams(text, between, start, stop)
    if stop < start or seams is None:
        return None
    starts = [start, *(at + len(piece) for at, piece in zip(seams, between, strict=True))]
    return list(zip(wanted, starts, [*seams, stop], strict=True))


def _seams(text: str, pieces: Sequence[str], start: int, stop: int) -> list[int] | None:
    """Where `pieces` stand in [start:stop], one after the other; None unless they can stand in one way alone."""
    from_left, from_right = [], []
    at, end = start, stop
    for first, last in zip(pieces, reversed(pieces), strict=True):
        from_left.append(text.find(first, at, stop) if first else -1)
        from_right.append(text.rfind(last, start, end))
        at, end = from_left[-1] + len(first), from_right[-1]
        if min(from_left[-1], end) < 0:
            return None
    return from_left if from_left == from_right[::-1] else None


def _by_itself(render: Render, turns: Sequence[Turn], text: str, turn: int) -> list[tuple[int, int, int]]:
    """One turn, whose rendering depends on what it says (reasoning, tool calls): it starts where an answer would be
    asked for, and ends where the text no longer depends on it, or where a conversation of the turns so far ends."""
    try:
        start = len(commonprefix([text, render(turns[:turn], turns[turn]["role"] == "assistant")])) if turn else 0
    except Refused:
        return []
    for stop in (_stop_before_the_same(render, turns, text, turn), _stop_of_the_first(render, turns, text, turn)):
        if stop is not None and start < stop:
            return [(turn, start, stop)]
    return []


def _stop_before_the_same(render: Render, turns: Sequence[Turn], text: str, turn: int) -> int | None:
    others = [*turns[:turn], _blanked(turns[turn], _word_absent_from(text)), *turns[turn + 1 :]]
    try:
        return len(text) - len(commonprefix([text[::-1], render(others, False)[::-1]]))
    except Refused:  # e.g. a tool's answer without a call before it
        return None


def _stop_of_the_first(render: Render, turns: Sequence[Turn], text: str, turn: int) -> int | None:
    try:
        return len(commonprefix([text, render(turns[: turn + 1], False)]))
    except Refused:
        return None


def _blanked(turn: Turn, word: str) -> Turn:
    return {"role": turn["role"], "content": word}
