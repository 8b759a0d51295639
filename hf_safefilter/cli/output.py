"""One voice, three listeners: a person, a program (json), a pipe (quiet). Data on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_safefilter.errors import SafefilterError

_MANY_COLUMNS = 8  # more than these do not fit a terminal with a line between them


class Format(StrEnum):
    """Who listens."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Voice:
    """Prints what commands have to say. Each command ends in one `report`."""

    def __init__(self, format: Format = Format.HUMAN) -> None:
        self.format = format
        self._talk = Console(stderr=True, highlight=False)
        self._data = Console(highlight=False)
        if format is not Format.HUMAN:
            _silence_bars()

    def say(self, text: str) -> None:
        """Talk: progress, hints. Only a person hears it."""
        if self.format is Format.HUMAN:
            self._talk.print(escape(text))

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of equal keys as a table, for a person; the other listeners get them in `report`."""
        if self.format is not Format.HUMAN or not rows:
            return
        tight = len(rows[0]) > _MANY_COLUMNS
        frame = {"box": None, "padding": (0, 0, 0, 1), "pad_edge": False} if tight else {}
        table = Table(title=escape(title), title_justify="left", **frame)
        for name in rows[0]:
            table.add_column(escape(str(name)), justify="left" if isinstance(rows[0][name], str) else "right")
        for row in rows:
            table.add_row(*(escape(_shown(value)) for value in row.values()))
        self._data.print(table)

    def report(self, facts: Mapping[str, Any], *, ids: Sequence[str] = (), hint: str | None = None) -> None:
        """The result: facts for a person or a program, one id a line for a pipe; `hint` names the next command."""
        if self.format is Format.JSON:
            sys.stdout.write(json.dumps(facts, default=str, allow_nan=False) + "\n")
        elif self.format is Format.QUIET:
            sys.stdout.write("".join(f"{one}\n" for one in ids))
        else:
            for name, value in facts.items():
                if isinstance(value, (str, int, float, bool)):
                    self._data.print(f"[bold]{escape(name)}[/bold]: {escape(_shown(value))}", soft_wrap=True)
            if hint:
                self._talk.print(f"[dim]next: {escape(hint)}[/dim]", soft_wrap=True)

    def error(self, error: Exception, spell: Callable[[str], str] = str) -> None:
        """What went wrong, for everybody, on stderr; `spell` puts options into the language of the surface."""
        if self.format is Format.JSON:
            parts: dict[str, Any] = {"error": type(error).__name__, "message": spell(str(error))}
            if isinstance(error, SafefilterError):
                said = {"message": error.fact, "found": error.found, "fix": error.fix}
                parts |= {name: text and spell(text) for name, text in said.items()}
            sys.stderr.write(json.dumps(parts) + "\n")
        else:
            self._talk.print(f"[red]error:[/red] {escape(spell(str(error)))}", soft_wrap=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _silence_bars() -> None:
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.disable_progress_bar()
