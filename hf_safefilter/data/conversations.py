"""A row of any known shape -> a conversation as a trainer would render it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.messages import (
    Message,
    as_text,
    is_blank,
    json_of,
    messages_in,
    parsed,
    says_something,
    strings_in,
)
from hf_safefilter.data.plain import plain
from hf_safefilter.data.shapes import IGNORE, SPOKEN, TRAILING, Shape, ignored_in, mapped_shape, shape_of
from hf_safefilter.data.transcripts import transcript_messages
from hf_safefilter.data.unread import unread_texts
from hf_safefilter.errors import DataError

logger = logging.getLogger(__name__)

TEXT = "text"
"""Role of the single message of a row that is plain text rather than a conversation."""

_OF_THE_RENDERER = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_logged: set[str] = set()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a row says.

    Attributes:
        messages: The turns, in order. Of a preference pair, those of the chosen side.
        tools: JSON of the tools that the chat template is handed, "" where there are none.
        template_options: JSON of the row's own variables for the chat template, "" where there are none.
        rejected: Of a preference pair, the turns of the rejected side.
        reason: "" or why the row cannot be scored: ``no_known_shape``, ``empty_row``, ``not_text``, ``unknown_role``,
            ``no_user_turn``, ``no_assistant_turn``, ``empty_prompt``, ``empty_response``,
            ``template_options_not_known``, or ``unread_<column>`` for text in a column of conversation that is not
            read, and ``unread_trailing_turn`` for turns after the last answer.
        unread: JSON of that text; part of the row's id.
    """

    messages: tuple[Message, ...]
    tools: str = ""
    template_options: str = ""
    rejected: tuple[Message, ...] | None = None
    reason: str = ""
    unread: str = ""

    @property
    def sides(self) -> tuple[tuple[Message, ...], ...]:
        """The turns; of a preference pair, those of the chosen and those of the rejected side."""
        return (self.messages,) if self.rejected is None else (self.messages, self.rejected)

    @property
    def size(self) -> int:
        """Characters said, on both sides."""
        said = [one for side in self.sides for one in side]
        return len(self.tools) + sum(len(one.content or "") + len(one.more) for one in said)


def answers_in(messages: Sequence[Message]) -> tuple[int, ...]:
    """Places of the turns that a trainer would learn: assistant turns, or the text of a row of plain text."""
    return tuple(place for place, said in enumerate(messages) if said.role in ("assistant", TEXT) and said.trained)


def conversations(batch: Batch, columns: Mapping[str, str] | None = None) -> list[Conversation]:
    """The `batch.n` conversations of a batch, one a row, in order; each row is read by its own shape.

    Args:
        batch: The rows.
        columns: Where things stand when the column names do not say (see `shapes.mapped_shape`), and under `IGNORE`
            what may go unread: names of columns, of keys of a message, and `TRAILING`, comma separated.

    Raises:
        OptionError, MissingError: A mapping that makes no sense.
        DataError: No column in which anything said could stand.
    """
    mapped, names = _columns_read(batch.names, columns)
    return _each({name: batch.cells(name) for name in names}, batch.n, mapped, columns)


def as_conversations(
    rows: Iterable[Mapping[str, Any]] | Any, columns: Mapping[str, str] | None = None
) -> list[Conversation]:
    """Conversations of a data set or of a list of rows, e.g. reference rows; rows may have different columns."""
    listed = [dict(row) for row in rows]
    if not listed:
        return []
    names = list(dict.fromkeys(name for row in listed for name in row if not str(name).startswith(EMBEDDING_PREFIX)))
    mapped, read = _columns_read(names, columns)
    return _each({name: [plain(row.get(name)) for row in listed] for name in read}, len(listed), mapped, columns)


def _columns_read(names: Sequence[str], columns: Mapping[str, str] | None) -> tuple[Shape | None, list[str]]:
    """The shape that a person says, if one does, and the columns in which something said may stand."""
    places = {key: name for key, name in (columns or {}).items() if key != IGNORE}
    mapped = mapped_shape(names, places) if places else None
    read = [name for name in names if name in SPOKEN or (mapped is not None and name in mapped.columns)]
    if not read:
        raise DataError(
            "these columns are no known shape of conversation",
            found=", ".join(names) or "no columns",
            fix='say where things stand, e.g. `columns={"prompt": "question", "response": "reply"}`',
        )
    return mapped, read


def _each(
    cells: Mapping[str, Sequence[Any]], count: int, mapped: Shape | None, columns: Mapping[str, str] | None
) -> list[Conversation]:
    ignored = frozenset(ignored_in(columns))
    rows = [{name: values[row] for name, values in cells.items() if values[row] is not None} for row in range(count)]
    return [_conversation(row, mapped, ignored) for row in rows]


def _conversation(row: Mapping[str, Any], mapped: Shape | None, ignored: frozenset[str]) -> Conversation:
    filled = frozenset(name for name, cell in row.items() if says_something(cell))
    shape = mapped or shape_of(filled) or shape_of(frozenset(row))
    if shape is None:
        return Conversation((Message("", as_text(row)),), reason="no_known_shape" if filled else "empty_row")
    _log_once(shape)
    said = _read(row, shape)
    # turns beside chosen and rejected are left out where these are whole conversations
    others = [name for name in row if name not in shape.columns or (name == shape.turns and shape.chosen is not None)]
    leftover = unread_texts({name: row[name] for name in others}, _texts_read(said)) if others else {}
    reasons = [said.reason, *(f"unread_{name}" for name in sorted(leftover) if name not in ignored)]
    if TRAILING not in ignored and any(_trails(side) for side in said.sides):
        reasons.append(f"unread_{TRAILING}")
    unread = json.dumps(leftover, sort_keys=True, ensure_ascii=False) if leftover else ""
    return replace(said, reason=next(filter(None, reasons), ""), unread=unread)


def _texts_read(said: Conversation) -> list[str]:
    return [said.tools, *(text for side in said.sides for one in side for text in (one.content or "", one.more))]


def _trails(messages: Sequence[Message]) -> bool:
    answers = answers_in(messages)
    return bool(answers) and answers[-1] < len(messages) - 1


def _read(row: Mapping[str, Any], shape: Shape) -> Conversation:
    if shape.text is not None:
        return _plain_text(row.get(shape.text))
    before = [*_system(row.get(shape.system or "")), *_history(row.get(shape.history or ""))]
    asked = _prompt([row.get(name) for name in shape.prompt])
    if shape.turns is not None:
        asked = [*asked, *_turns(row.get(shape.turns))]
    if before and before[0].role == "system" and before[0] in asked:
        before = before[1:]
    head = [*before, *asked]
    template_options, fault = _template_options(row.get(shape.template_options or ""))
    answers = [name for name in (shape.response, shape.chosen, shape.rejected) if name is not None]
    whole = [tuple(_joined(head, row.get(name))) for name in answers] or [tuple(head)]
    rejected = whole[1] if shape.chosen is not None and shape.rejected is not None else None
    reasons = [fault, *map(_reason, whole)]
    tools = _tools(row.get(shape.tools or ""))
    return Conversation(whole[0], tools, template_options, rejected, next(filter(None, reasons), ""))


def _joined(head: list[Message], answer: Any) -> list[Message]:
    """The turns of an answer after `head`, unless the answer is a whole conversation that begins as `head` does."""
    tail = _turns(answer) if isinstance(answer, str) else messages_in(answer)
    if isinstance(answer, str) and any(said.role == "user" for said in head):
        # a trainer learns all of a text: turns of others that it seems to hold must not stay unread
        rest = tail[len(head) :] if tail[: len(head)] == head else tail
        return [*head, *(rest if {said.role for said in rest} <= {"assistant"} else [Message("assistant", answer)])]
    whole = bool(head and tail) and tail[0].role != "assistant" and tail[0] == head[0]
    return tail if whole else [*head, *tail]


def _prompt(cells: list[Any]) -> list[Message]:
    cells = [cell for place, cell in enumerate(cells) if place == 0 or says_something(cell)]
    if not cells:
        return []
    if len(cells) == 1:
        transcript = transcript_messages(cells[0]) if isinstance(cells[0], str) else None
        return transcript if transcript is not None else messages_in(cells[0], alone="user")
    if all(isinstance(cell, str) for cell in cells):
        return [Message("user", "\n".join(cells))]
    return [Message("user", as_text(cells), fault="not_text")]


def _turns(cell: Any) -> list[Message]:
    if isinstance(cell, (list, tuple)) and cell and all(isinstance(turn, str) for turn in cell):
        return [Message(("user", "assistant")[place % 2], turn) for place, turn in enumerate(cell)]  # UltraChat's data
    if isinstance(cell, str) and (transcript := transcript_messages(cell)) is not None:
        return transcript
    return messages_in(cell)


def _system(cell: Any) -> list[Message]:
    if not says_something(cell) or (isinstance(cell, str) and not cell.strip()):
        return []
    return messages_in(cell, alone="system")


def _history(cell: Any) -> list[Message]:
    """Earlier turns: pairs of a question and its answer, or a list of turns."""
    if not says_something(cell):
        return []
    if isinstance(cell, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in cell):
        speakers = ("user", "assistant")
        return [
            said for pair in cell for who, text in zip(speakers, pair, strict=True) for said in messages_in(text, who)
        ]
    return _turns(cell)


def _tools(cell: Any) -> str:
    """JSON of the tools, and a text as it is: a trainer parses it, or fails over it."""
    if not says_something(cell):
        return ""
    return cell if isinstance(cell, str) else json_of(cell)


def _template_options(cell: Any) -> tuple[str, str]:
    """JSON of the row's own variables for its template, and why they cannot be used."""
    if not says_something(cell):
        return "", ""
    options = parsed(cell) if isinstance(cell, str) else cell
    if not isinstance(options, Mapping) or _OF_THE_RENDERER & set(options):
        return as_text(cell), "template_options_not_known"
    given = {key: value for key, value in options.items() if value is not None}
    return json_of(given) if given else "", ""


def _plain_text(cell: Any) -> Conversation:
    if not isinstance(cell, str):
        return Conversation((Message(TEXT, as_text(cell)),), reason="not_text")
    transcript = transcript_messages(cell)
    if transcript is not None:
        return Conversation(tuple(transcript), reason=_reason(transcript))
    return Conversation((Message(TEXT, cell),), reason="empty_response" if is_blank(cell) else "")


def _reason(messages: Sequence[Message]) -> str:
    faults = [said.fault for said in messages if said.fault]
    if faults:
        return "unknown_role" if set(faults) == {"unknown_role"} else "not_text"
    answers = answers_in(messages)
    if not answers:
        return "no_assistant_turn"
    users = [said for said in messages if said.role == "user"]
    if not users:
        return "no_user_turn"
    if is_blank(users[-1].content or "") and not users[-1].more:
        return "empty_prompt"
    last = messages[answers[-1]]
    return "empty_response" if is_blank(last.content or "") and not last.more else ""


def _log_once(shape: Shape) -> None:
    words = shape.describe()
    if words not in _logged:
        _logged.add(words)
        logger.info("rows are read as %s", words)


def prompt_of(conversation: Conversation) -> str:
    """The last user turn before the last answer; "" for plain text."""
    answers = answers_in(conversation.messages)
    before = conversation.messages[: answers[-1]] if answers else conversation.messages
    return next((said.content or "" for said in reversed(before) if said.role == "user"), "")


def response_of(conversation: Conversation) -> str:
    """The text of the last answer, or the plain text."""
    answers = answers_in(conversation.messages)
    return (conversation.messages[answers[-1]].content or "") if answers else ""


def answered_text(conversation: Conversation) -> str:
    """All that a trainer would learn: the text, reasoning and tool calls of every answer, in order."""
    answers = [conversation.messages[place] for place in answers_in(conversation.messages)]
    return "\n".join(text for said in answers for text in (said.content or "", *strings_in(said.extras())) if text)
