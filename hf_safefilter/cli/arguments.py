"""Options that several commands share, with their help texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hf_safefilter.cli import completion
from hf_safefilter.columns import Layer, is_shift
from hf_safefilter.data.strict_yaml import load_yaml
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ModelOptions, ReadingOptions, checked_reading, described
from hf_safefilter.storage.atomic import require_writable

Rows = Annotated[
    str, typer.Argument(help="Hub id, .jsonl/.json/.csv/.parquet/.arrow file, or folder.", show_default=False)
]
Layers = Annotated[str, typer.Option(help="Layers to read: hidden_states\\[k], e.g. 12 or 8,12 or norm.")]


def _writable(output: Path | None) -> Path | None:
    """The folder to write, before any work is done for it."""
    if output is not None:
        require_writable(output)
    return output


Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder to write; an earlier output in it is replaced at the end.", callback=_writable
    ),
]
Column = Annotated[
    list[str] | None, typer.Option("--column", help="Columns of the rows, e.g. --column prompt=q --column response=a.")
]
Split = Annotated[str | None, typer.Option(help="Use only this split.")]
Folder = Annotated[Path, typer.Argument(help="Folder written by an earlier command.", show_default=False)]
Blocks = Annotated[str | None, typer.Option(help="A range of blocks, the last one included, e.g. 6-12.")]
License = Annotated[str, typer.Option(help="Licence, as the Hub names it, e.g. cc-by-4.0.")]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Go on in spite of a bad verdict on the score; the card says so.")
]
TrustVectors = Annotated[
    bool,
    typer.Option("--trust-vectors", help="Believe a folder that was not written here by you; the card says so."),
]
ScoreColumn = Annotated[
    str | None,
    typer.Option(
        help="Score column or method to decide by; not for a folder written by select.",
        autocompletion=completion.scores,
    ),
]
Source = Annotated[str, typer.Option(help="Where the rows come from: a Hub id, a URL or a sentence.")]


Command = Callable[..., None]


def reads_a_model(
    *, argument: bool = False, optional: bool = False, without: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Replace a command's parameter of type `ReadingOptions` or `ModelOptions` by one option for each of its fields.

    So every command that reads a model has every option of reading.

    Args:
        argument: Whether the model is the first argument of the command instead of an option.
        optional: Whether the model may be left out; it is "" then.
        without: Names of options that this command does not have.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        slot, kind = next((name, hint) for name, hint in hints.items() if hint in (ModelOptions, ReadingOptions))
        options = _model_parameters(kind, argument, optional, without)
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == slot:
                parameters += options
            else:
                parameters.append(
                    parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
                )
        names = [parameter.name for parameter in options]

        @functools.wraps(command)
        def call(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            options = kind(**{name: _as_field(kind, name, value) for name, value in given.items()})
            if isinstance(options, ReadingOptions):
                checked_reading(options)  # a mistake is answered before rows are read and libraries imported
            command(**{slot: options}, **values)

        # typer reads signature and annotations; parameters without defaults come first, as Python requires
        parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _model_parameters(
    kind: type[ModelOptions], argument: bool, optional: bool, without: tuple[str, ...]
) -> list[inspect.Parameter]:
    helps, hints = described(kind), get_type_hints(kind)
    parameters = []
    for field in fields(kind):
        if field.name in without:
            continue
        default: Any = field.default
        shell: Any
        if field.name == "model":
            default = "" if optional else inspect.Parameter.empty
            shell = typer.Argument(help=helps[field.name], show_default=False) if argument else None
        else:
            shell = None
        if isinstance(default, tuple):
            default = ",".join(default)
        shell = shell or typer.Option(help=helps[field.name], show_default=bool(default))
        plain = str if hints[field.name] not in (int | None, str | None) else hints[field.name]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[plain, shell]
            )
        )
    return parameters


def _as_field(kind: type[ModelOptions], name: str, value: Any) -> Any:
    """A value of the command line as the field holds it: of several names, a tuple."""
    default = next(field.default for field in fields(kind) if field.name == name)
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(default, tuple) else value


def layers_of(text: str, flag: str = "--layers", *, shifts: bool = False) -> list[Layer]:
    """``"8,12,norm"`` -> ``[8, 12, "norm"]``; with `shifts`, ``12_shift`` is a layer too."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() or part == "norm" or (shifts and is_shift(part)) for part in parts):
        raise OptionError(f"{flag} {text!r} names no layers", fix=f"use e.g. {flag} 12 or {flag} 8,12,norm")
    return [int(part) if part.isdigit() else part for part in parts]


def pairs_of(texts: list[str] | None, flag: str) -> dict[str, str] | None:
    """``["prompt=q", "response=a"]`` -> ``{"prompt": "q", "response": "a"}``."""
    if not texts:
        return None
    pairs = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise OptionError(f"{flag} {text!r} is not name=value", fix=f"use e.g. {flag} prompt=question")
        pairs[name] = value
    return pairs


def values_of(texts: list[str] | None, flag: str) -> dict[str, Any]:
    """``["k=5", "targets=[q_proj, v_proj]"]`` -> ``{"k": 5, "targets": ["q_proj", "v_proj"]}``."""
    values = {}
    for name, text in (pairs_of(texts, flag) or {}).items():
        try:
            values[name] = load_yaml(text, flag)
        except OptionError as error:
            raise OptionError(
                f"{flag} {name}={text} is not a value", fix="put quotes around a text with special characters"
            ) from error
    return values


def blocks_of(text: str, flag: str) -> tuple[int, int]:
    """``"6-12"`` (or ``"6:12"``) -> ``(6, 12)``; ``"6"`` -> ``(6, 6)``."""
    first, sign, last = text.replace(":", "-").partition("-")
    if not first.isdecimal() or (sign and not last.isdecimal()):
        raise OptionError(f"{flag} {text!r} is not a range of blocks", fix=f"use e.g. {flag} 6-12")
    return int(first), int(last or first)
