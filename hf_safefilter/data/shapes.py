"""Which columns of a row hold what is said: decided row by row, since a file may hold rows of several shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from hf_safefilter.checks import suggesting
from hf_safefilter.errors import MissingError, OptionError

TURNS = ("messages", "conversations", "conversation", "data", "turns", "dialog", "dialogue")
PROMPTS = (
    ("prompt",),
    ("instruction", "input"),
    ("instruction", "context"),
    ("instruction",),
    ("question", "context"),
    ("question",),
    ("query",),
)
"""Columns that make the user's turn together, in the order in which they are tried."""

ANSWERS = ("completion", "response", "output", "answer")
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
TEMPLATE_OPTIONS = ("chat_template_kwargs",)
IGNORE = "ignore"
"""Key of a `columns` mapping under which stands what may go unread."""

TRAILING = "trailing_turn"
"""What `IGNORE` calls turns after the last answer that is trained on."""

SPOKEN = frozenset(
    {
        *TURNS,
        *(name for group in PROMPTS for name in group),
        *ANSWERS,
        *SYSTEMS,
        "chosen",
        "rejected",
        *TOOLS,
        *TEMPLATE_OPTIONS,
        "history",
        "text",
    }
)
"""Every column in which something said may stand. Text in one of them that is not read makes a row unscorable."""

MAPPED = ("messages", "prompt", "response", "chosen", "rejected", "system", "history", "tools", "text")
"""What `columns` may say the place of."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the columns of a row hold a conversation.

    Attributes:
        turns: Column that holds a list of turns.
        prompt: Columns joined by a newline to make the user's turn; empty cells are left out.
        response: Column of the answer.
        chosen: Column of the better answer of a preference pair.
        rejected: Column of the worse one.
        system: Column of a system turn.
        history: Column of earlier turns.
        tools: Column of the tools that the template is handed.
        template_options: Column of further variables for the template, as TRL passes them to it.
        text: Column of plain text.
    """

    turns: str | None = None
    prompt: tuple[str, ...] = ()
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    template_options: str | None = None
    text: str | None = None

    @property
    def columns(self) -> frozenset[str]:
        """All columns that it reads."""
        answers = (self.response, self.chosen, self.rejected, self.text)
        named = (self.turns, *answers, self.system, self.history, self.tools, self.template_options)
        return frozenset({*self.prompt, *(name for name in named if name is not None)})

    def describe(self) -> str:
        """What stands where, in a few words."""
        if self.text is not None:
            return f"plain text {self.text!r}"
        answer = [f"{name!r}" for name in (self.response, self.chosen, self.rejected) if name is not None]
        parts = [f"turns {self.turns!r}"] if self.turns is not None else []
        parts += [f"prompt {' + '.join(map(repr, self.prompt))}"] if self.prompt else []
        parts += [f"answer {' and '.join(answer)}"] if answer else []
        beside = [f"{name!r}" for name in (self.system, self.history, self.tools) if name is not None]
        return ", ".join(parts) + (f" (with {', '.join(beside)})" if beside else "")


@lru_cache(maxsize=1024)
def shape_of(filled: frozenset[str]) -> Shape | None:
    """The shape of a row whose columns `filled` hold something; None for no known shape."""

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in filled), None)

    beside = Shape(
        system=first(SYSTEMS), history=first(("history",)), tools=first(TOOLS), template_options=first(TEMPLATE_OPTIONS)
    )
    chosen, rejected = (first((side,)) for side in ("chosen", "rejected"))
    prompt = next((group for group in PROMPTS if filled.issuperset(group)), ())
    turns, answer = first(TURNS), first(ANSWERS)
    if turns is not None and not (turns == "data" and prompt):
        return replace(beside, turns=turns, chosen=chosen, rejected=rejected)
    if chosen is not None:
        return replace(beside, prompt=prompt, chosen=chosen, rejected=rejected)
    if prompt and answer is not None:
        return replace(beside, prompt=prompt, response=answer)
    return Shape(text="text") if "text" in filled else None


def with_ignored(columns: Mapping[str, str] | None, ignored: Sequence[str]) -> dict[str, str] | None:
    """`columns` with more that may go unread; None if nothing is said."""
    both = dict.fromkeys([*ignored_in(columns), *ignored])
    named = {key: name for key, name in (columns or {}).items() if key != IGNORE}
    return (named | ({IGNORE: ",".join(both)} if both else {})) or None


def ignored_in(columns: Mapping[str, str] | None) -> tuple[str, ...]:
    """What may go unread according to `columns`."""
    return tuple(name.strip() for name in (columns or {}).get(IGNORE, "").split(",") if name.strip())


def mapped_shape(names: Sequence[str], columns: Mapping[str, str]) -> Shape:
    """The shape that a person says.

    Args:
        names: All columns of the rows.
        columns: What stands where, e.g. ``{"prompt": "q", "response": "a"}``; keys are some of `MAPPED`.

    Raises:
        OptionError: A mapping that makes no conversation.
        MissingError: A column that is not there.
    """
    unknown = [key for key in columns if key not in MAPPED]
    said = set(columns)
    whole = "messages" in said or said == {"text"} or "chosen" in said or {"prompt", "response"} <= said
    if unknown or not whole or ("text" in said and len(said) > 1):
        raise OptionError(
            f"`columns={dict(columns)!r}` does not say where a conversation stands",
            found=f"{', '.join(sorted(said)) or 'nothing'}; known are {', '.join(MAPPED)}",
            fix='name `columns={"prompt": "...", "response": "..."}`, `columns={"messages": "..."}`, '
            '`columns={"prompt": "...", "chosen": "...", "rejected": "..."}` or `columns={"text": "..."}`',
        )
    for key, name in columns.items():
        if name not in names:
            raise MissingError(
                f"`columns={{{key!r}: {name!r}}}` names a column that is not there",
                found=", ".join(names) or "no columns",
                fix=suggesting(name, names, "name one of these"),
            )
    return Shape(
        turns=columns.get("messages"),
        prompt=(columns["prompt"],) if "prompt" in columns else (),
        response=columns.get("response"),
        chosen=columns.get("chosen"),
        rejected=columns.get("rejected"),
        system=columns.get("system"),
        history=columns.get("history"),
        tools=columns.get("tools"),
        text=columns.get("text"),
    )
