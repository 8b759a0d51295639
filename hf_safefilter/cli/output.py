"""Output for a person, a program (json) or a pipe (quiet): results go to stdout, messages to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_safefilter.cli.wording import as_called
from hf_safefilter.errors import OptionError, SafefilterError
from hf_safefilter.errors.redaction import everywhere, redacted, shown

if TYPE_CHECKING:
    from hf_safefilter.decide.verdict import Verdict

NOT_TRUSTED = 3
"""Exit code of a command that has done its work, and found that its result should not be used."""

_MANY_COLUMNS = 8  # wider tables have no lines between columns, so that they fit into a terminal


class Format(StrEnum):
    """The form of the output."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Printer:
    """Prints the output of a command. Each command ends with one `report`."""

    def __init__(self, format: Format = Format.HUMAN, *, yes: bool = False) -> None:
        self.format = format
        self._yes = yes
        self._stderr = Console(stderr=True, highlight=False)
        self._stdout = Console(highlight=False)
        if format is not Format.HUMAN:
            _hide_progress_bars()

    def message(self, text: str) -> None:
        """Print a message, such as progress, for a person only."""
        if self.format is Format.HUMAN:
            self._stderr.print(escape(as_called(shown(text))))

    def note(self, text: str, *, warning: bool = False) -> None:
        """Print what happens beside the work to stderr, in any format."""
        text = as_called(shown(text))
        if self.format is Format.HUMAN:
            self._stderr.print(f"[yellow]{escape(text)}[/yellow]" if warning else escape(text), soft_wrap=True)
        else:
            sys.stderr.write(text + "\n")

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows with the same keys as a table, for a person only; other formats have them in `report`."""
        if self.format is not Format.HUMAN or not rows:
            return
        title = escape(shown(title))
        if len(rows[0]) > _MANY_COLUMNS:
            table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1), pad_edge=False)
        else:
            table = Table(title=title, title_justify="left")
        for name in rows[0]:
            table.add_column(escape(shown(str(name))), justify="left" if isinstance(rows[0][name], str) else "right")
        for row in rows:
            table.add_row(*(escape(_text_of(value)) for value in row.values()))
        self._stdout.print(table)

    def confirm(self, question: str) -> None:
        """Ask before something is done that others see; nothing is asked if the user has said --yes.

        Raises:
            OptionError: There is nobody to answer.
            typer.Exit: The answer is no.
        """
        if self._yes:
            return
        try:
            agreed = typer.confirm(shown(question), err=True)
        except typer.Abort as error:
            raise OptionError(
                "nobody answered, so nothing was done", fix="add --yes to go on without a question"
            ) from error
        if not agreed:
            self.note("nothing was done; --yes goes on without a question")
            raise typer.Exit(1)

    def report(self, facts: Mapping[str, Any], *, ids: Sequence[str] = (), hint: str | None = None) -> None:
        """Print the result.

        Args:
            facts: Facts for a person (plain values only) or a program.
            ids: What a pipe gets, one in each line.
            hint: The next command, for a person.
        """
        if self.format is Format.JSON:
            sys.stdout.write(json.dumps(everywhere(facts, redacted), default=str, allow_nan=False) + "\n")
        elif self.format is Format.QUIET:
            sys.stdout.write("".join(f"{redacted(item)}\n" for item in ids))
        else:
            for name, value in facts.items():
                if isinstance(value, (str, int, float, bool)):
                    self._stdout.print(f"[bold]{escape(shown(name))}[/bold]: {escape(_text_of(value))}", soft_wrap=True)
            if hint:
                self._stderr.print(f"[dim]next: {escape(as_called(shown(hint)))}[/dim]", soft_wrap=True)

    def judged(
        self,
        verdict: Verdict,
        facts: Mapping[str, Any],
        *,
        anyway: bool,
        ids: Sequence[str],
        hint: str,
        instead: str,
    ) -> None:
        """Print the result of a decision, what is known of the score that decides, and what to do next.

        Args:
            verdict: The verdict on the score.
            facts: As of `report`.
            anyway: Whether the user insists in spite of a bad verdict.
            ids: As of `report`.
            hint: The next command where the score is trusted, or the user insists.
            instead: The next command else.

        Raises:
            typer.Exit: The verdict is bad, and the user does not insist.
        """
        refused = verdict.bad and not anyway
        if not verdict.trusted or self.format is Format.HUMAN:
            self.note(f"verdict: {verdict.sentence}", warning=not verdict.trusted)
        if refused:
            self.note(
                "what to do: try another method or layer, or references of your own domain; or label some rows, and "
                "measure. --anyway goes on in spite of the verdict, and the card says so"
            )
        insisted = {"anyway": True} if verdict.bad and anyway else {}
        facts = {**facts, "verdict": verdict.to_json(), **insisted}
        self.report(facts, ids=ids, hint=hint if verdict.trusted or anyway else instead)
        if refused:
            raise typer.Exit(NOT_TRUSTED)

    def error(self, error: Exception, translate: Callable[[str], str] = str) -> None:
        """Print an error to stderr; `translate` turns options in its text into flags or keys of a recipe."""

        def said(text: str) -> str:
            return as_called(translate(text))

        if self.format is Format.JSON:
            parts: dict[str, Any] = {"error": type(error).__name__, "message": said(shown(str(error)))}
            if isinstance(error, SafefilterError):
                texts = {"message": error.fact, "found": error.found, "fix": error.fix}
                parts |= {name: text and said(text) for name, text in texts.items()}
            sys.stderr.write(json.dumps(parts) + "\n")
        else:
            self._stderr.print(f"[red]error:[/red] {escape(said(shown(str(error))))}", soft_wrap=True)


def _text_of(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else shown(str(value))


_BARS = {
    "datasets": ("HF_DATASETS_DISABLE_PROGRESS_BARS", "datasets.utils", "disable_progress_bars"),
    "huggingface_hub": ("HF_HUB_DISABLE_PROGRESS_BARS", "huggingface_hub.utils", "disable_progress_bars"),
    "transformers": ("HF_HUB_DISABLE_PROGRESS_BARS", "transformers.utils.logging", "disable_progress_bar"),
}
"""Library that shows progress -> variable that it reads when it is imported, and its switch afterwards."""


def _hide_progress_bars() -> None:
    for library, (variable, module, switch) in _BARS.items():
        os.environ[variable] = "1"  # none is imported for it: a wrong call is to be answered at once
        if library in sys.modules:
            getattr(import_module(module), switch)()
