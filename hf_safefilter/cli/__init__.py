"""The command line: parse, call, print. One command, one file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer

from hf_safefilter.cli.output import Format, Voice
from hf_safefilter.cli.wording import in_recipe, in_shell
from hf_safefilter.errors import OptionError, SafefilterError, is_disk_full, is_out_of_memory

app = typer.Typer(
    name="hf-safefilter",
    help="Find and remove the rows of a fine-tuning set that would break an aligned model's safety.",
    epilog="Start here: hf-safefilter demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def _print_version(asked: bool) -> None:
    if asked:
        from hf_safefilter import __version__

        typer.echo(f"hf_safefilter {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    format: Annotated[
        Format, typer.Option(help="Who listens: human, json (one document) or quiet (ids).")
    ] = Format.HUMAN,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = Voice(format)


_COMMANDS = (
    "plan", "embed", "merge", "reference", "score", "seal", "compare", "evaluate", "select", "run", "demo",
    "locate", "freeze", "effect", "card", "push", "methods", "doctor", "cache",
)  # fmt: skip
"""In the order of `--help`; each is a file here with a function, or a group of commands, of its name."""

_FROM_RECIPES = ("run", "demo")
"""Commands whose options stand in a recipe."""


def _register() -> None:
    for name in _COMMANDS:
        file = import_module(f"{__name__}.{name}")
        command = getattr(file, name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name=name, epilog=f"Example: {file.EXAMPLE}")(command)


_register()


def main() -> None:
    """Entry point: exit code 0 for done, 1 for an error, 2 for a wrong call, 130 for Ctrl-C."""
    voice = Voice(_format_asked())
    try:
        app(prog_name="hf-safefilter")
    except SafefilterError as error:
        voice.error(error, _spelling())
        sys.exit(2 if isinstance(error, OptionError) else 1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            voice.error(RuntimeError("stopped; what was finished is kept, run the same command again to go on"))
        raise
    except Exception as error:  # the last stop: a person gets a sentence, a developer asks for the traceback
        if os.environ.get("HF_SAFEFILTER_DEBUG"):
            raise
        voice.error(_in_words(error), _spelling())
        sys.exit(1)


def _spelling() -> Callable[[str], str]:
    """How the command that was called takes its options: from a recipe, or as flags."""
    if any(word in _FROM_RECIPES for word in sys.argv[1:]):
        return in_recipe
    flags: dict[str, str] = {}
    commands: list[Any] = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        flags |= {one.name: max(one.opts, key=len) for one in command.params if one.opts[0].startswith("-")}
    return lambda text: in_shell(text, flags)


def _in_words(error: Exception) -> SafefilterError:
    if is_disk_full(error):
        return SafefilterError(
            "a disk is full",
            found="rows are copied to the caches of Hugging Face (HF_HOME), results go to --output",
            fix="make room, or name another disk, and run the same command again: vectors that were read are kept",
        )
    if is_out_of_memory(error):
        return SafefilterError(
            "there is too little memory",
            fix="use a smaller --max-length, --dtype bfloat16, a smaller model or fewer processes, and run the same "
            "command again: rows that were read or scored are kept",
        )
    fact = f"{type(error).__name__}: {error}"
    return SafefilterError(fact, fix="set HF_SAFEFILTER_DEBUG=1 to see where it came from")


def _format_asked() -> Format:
    """The --format on the command line, for errors that come before or after its parsing."""
    words = sys.argv[1:]
    for at, word in enumerate(words):
        given = word.partition("=")[2] if word.startswith("--format=") else None
        if word == "--format" and at + 1 < len(words):
            given = words[at + 1]
        if given in set(Format):
            return Format(given)
    return Format.HUMAN
