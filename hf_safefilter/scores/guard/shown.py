"""What a guard gets to read of a row: one conversation for each answer, which ends with it."""

from __future__ import annotations

from collections.abc import Iterator

from hf_safefilter.data.conversations import TEXT, Conversation, answers_in
from hf_safefilter.data.messages import Message, strings_in


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
