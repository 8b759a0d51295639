"""What a guard gets to read of a row: one conversation for each answer, which ends with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import RowVectors
from hf_safefilter.data.conversations import TEXT, Conversation, answers_in
from hf_safefilter.data.messages import Message, strings_in
from hf_safefilter.data.ragged import offsets_of
from hf_safefilter.data.spans import SPAN

NON_FINITE = "non_finite"
"""Reason of a row for which the guard's probability is not finite."""

Judged = tuple[np.ndarray, list[str]]
"""P(unsafe) of each conversation, float64 (n,), and why it has none, or ""."""


def shown(row: Conversation) -> list[tuple[int, Conversation]]:
    """The turn of each answer, and the conversation up to it, in the roles and the one text a turn that guards know.

    Of an answer, reasoning and tool calls are shown with its text. System and developer turns, which guards do not
    judge, are left out; what tools say is shown as the user's; plain text is shown as a user's turn. The turns before
    the answer are marked as not trained: some guards leave them out.
    """
    if row.messages[-1].role == TEXT:
        return [(0, Conversation((Message("user", row.messages[-1].content),)))]
    return [(turn, Conversation(tuple(_joined(row.messages[: turn + 1])))) for turn in answers_in(row.messages)]


def _joined(messages: tuple[Message, ...]) -> Iterator[Message]:
    """One turn after the other, neighbours of the same role as one."""
    role, texts = "", list[str]()
    for said in messages:
        if said.role in ("system", "developer"):
            continue
        speaker = "assistant" if said.role == "assistant" else "user"
        if texts and speaker != role:
            yield Message(role, "\n".join(texts), trained=False)
            texts = []
        role = speaker
        texts += filter(None, (said.content, *(strings_in(said.extras()) if speaker == "assistant" else ())))
    yield Message(role, "\n".join(texts))


def each_answer(rows: Sequence[Conversation], judge: Callable[[list[Conversation]], Judged]) -> RowVectors:
    """A score for each answer of each row that can be judged whole."""
    asked = [[] if row.reason else shown(row) for row in rows]
    scores, faults = judge([said for answers in asked for _, said in answers])
    offsets = offsets_of(np.array([len(answers) for answers in asked], dtype=np.int64))
    spans = np.zeros(len(scores), SPAN)
    spans["turn"] = [turn for answers in asked for turn, _ in answers]
    reasons = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        own = slice(int(offsets[index]), int(offsets[index + 1]))
        unjudged = NON_FINITE if not np.isfinite(scores[own]).all() else ""
        reasons[index] = row.reason or next(filter(None, faults[own]), unjudged)
    found = RowVectors(
        offsets, spans, {cache.SCORE: scores.astype(np.float32)[:, None]}, np.zeros(len(rows), bool), reasons
    )
    return found.without(reasons != "", reasons)
