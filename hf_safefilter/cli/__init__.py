"""The command line: parse, call, print. One command, one file."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer

from hf_safefilter.cli.anywhere import FlagsAnywhere, flags_and_rest, requested_format
from hf_safefilter.cli.output import Format, Printer
from hf_safefilter.cli.wording import in_recipe, in_shell, program
from hf_safefilter.errors import OptionError, SafefilterError, is_disk_full, is_out_of_memory
from hf_safefilter.errors.redaction import shown


class _Commands(FlagsAnywhere):
    """All commands. What is wrong with a call is said without what could steer a terminal."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _printable():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _printable():
            return super().invoke(ctx)


@contextmanager
def _printable() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(getattr(error, "message", None), str):  # of a wrong call
            error.message = shown(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="hf-safefilter",
    cls=_Commands,
    help="Find and remove the rows of a fine-tuning set that would break an aligned model's safety.",
    epilog="Start here: hf-safefilter demo. The options above may also stand after the command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_INTERRUPTED = 130  # exit code of typer after Ctrl-C
_TERMINATED = 143  # as a shell reports a process that SIGTERM has ended


def _print_version(requested: bool) -> None:
    if requested:
        from hf_safefilter import __version__

        typer.echo(f"hf_safefilter {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    format: Annotated[
        Format, typer.Option(help="Form of the output: human, json (one document) or quiet (ids).")
    ] = Format.HUMAN,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Short for --format quiet.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Answer every question with yes.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = Printer(Format.QUIET if quiet else format, yes=yes)
    _show_log(context.obj)


def _show_log(printer: Printer) -> None:
    """Print what the package logs to stderr: how rows were read, and what was not; for a program warnings alone."""
    logger = logging.getLogger("hf_safefilter")
    for handler in [one for one in logger.handlers if isinstance(one, _Shown)]:
        logger.removeHandler(handler)
    logger.addHandler(_Shown(printer))
    logger.setLevel(logging.INFO if printer.format is Format.HUMAN else logging.WARNING)
    logger.propagate = False


class _Shown(logging.Handler):
    """Prints records in the language of the shell."""

    def __init__(self, printer: Printer) -> None:
        super().__init__()
        self._printer = printer

    def emit(self, record: logging.LogRecord) -> None:
        self._printer.note(_translation()(record.getMessage()), warning=record.levelno >= logging.WARNING)


_COMMANDS = (
    "plan", "embed", "merge", "reference", "score", "label", "seal", "compare", "evaluate", "select", "inspect",
    "review", "run", "demo", "locate", "freeze", "effect", "card", "push", "verify", "diff", "methods", "doctor",
    "cache",
)  # fmt: skip
"""Commands in the order of `--help`; each is a file in this folder, with a function or command group of that name."""

_FROM_RECIPES = ("run", "demo")
"""Commands whose options are in a recipe."""


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
    """Entry point; exit code 0 for success, 1 an error, 2 a wrong call, 3 a bad verdict, 130 Ctrl-C, 143 SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    printer = Printer(requested_format(sys.argv[1:]))
    try:
        with _tidy_at_sigterm():
            app(prog_name=program())
    except SafefilterError as error:
        printer.error(error, _translation())
        sys.exit(2 if isinstance(error, OptionError) else 1)
    except SystemExit as end:
        if end.code in (_INTERRUPTED, _TERMINATED):
            printer.error(RuntimeError("stopped; finished work is kept: run the same command again to resume"))
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # unexpected, or a panic of a library in Rust, which is no `Exception`: a user gets
        # a sentence, a developer can ask for the traceback
        if os.environ.get("HF_SAFEFILTER_DEBUG"):
            raise
        printer.error(_explained(error), _translation())
        sys.exit(1)


@contextmanager
def _tidy_at_sigterm() -> Iterator[None]:
    """SIGTERM, by which schedulers stop a job, ends the command as Ctrl-C does: what is half-written is removed."""

    def stop(*_: object) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _translation() -> Callable[[str], str]:
    """The function that writes options as the called command takes them: as keys of a recipe, or as flags."""
    if next(iter(flags_and_rest(sys.argv[1:])[1]), None) in _FROM_RECIPES:
        return in_recipe
    flags: dict[str, str] = {}
    commands: list[Any] = [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        options = [parameter for parameter in command.params if parameter.opts[0].startswith("-")]
        flags |= {option.name: max(option.opts, key=len) for option in options}
    return lambda text: in_shell(text, flags)


def _explained(error: BaseException) -> SafefilterError:
    if is_disk_full(error):
        return SafefilterError(
            "a disk is full, or a file may not grow",
            found="rows are copied to the caches of Hugging Face (HF_HOME), results are written to --output",
            fix="make room, or use another disk, and run the same command again: vectors that were read are cached",
        )
    if is_out_of_memory(error):
        return SafefilterError(
            "there is too little memory",
            fix="use a smaller --max-length, --dtype bfloat16, a smaller model or fewer processes, and run the same "
            "command again: rows that were read or scored are cached",
        )
    connection = isinstance(error, (ConnectionError, TimeoutError, socket.gaierror))
    if isinstance(error, OSError) and error.errno is not None and not connection:
        return SafefilterError(
            f"a file or folder cannot be used: {error.strerror or type(error).__name__}",
            found=str(error.filename or "a file that the system does not name"),
            fix="check the path, its permissions, and what HF_HOME and HF_SAFEFILTER_CACHE name",
        )
    if type(error).__module__.partition(".")[0] in ("httpx2", "httpcore2", "huggingface_hub"):
        return SafefilterError(
            "the Hub cannot be reached, or refused",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="check the connection and HF_ENDPOINT, or use local files with HF_HUB_OFFLINE=1",
        )
    if type(error).__module__.partition(".")[0] in ("pyarrow", "datasets"):  # of a stream, whose rows are read last
        return SafefilterError(
            "rows cannot be read as they are",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="correct the file; without data.streaming it is read whole, and the error names the line",
        )
    fact = f"{type(error).__name__}: {error}"
    return SafefilterError(fact, fix="set HF_SAFEFILTER_DEBUG=1 to see the traceback")
