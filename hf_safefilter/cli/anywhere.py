"""Flags of the program itself, which may stand anywhere: before the command, after it, or at the end of the line."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from typer.core import TyperGroup

from hf_safefilter.cli.output import Format

_PLAIN = ("--quiet", "-q", "--yes", "-y")


def flags_and_rest(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of the program among the words of a command line, and the other words, in their order.

    Nothing is taken from behind ``--``, nor ``--format`` with a form of output that the program does not have.
    """
    flags: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return flags, [*rest, word, *left]
        name, _, value = word.partition("=")
        if word in _PLAIN or (name == "--format" and value in set(Format)):
            flags.append(word)
        elif word == "--format" and left and left[0] in set(Format):
            flags.append(f"{word}={left.pop(0)}")
        else:
            rest.append(word)
    return flags, rest


def requested_format(words: Sequence[str]) -> Format:
    """The form of output that the words ask for, for errors that occur before they are parsed."""
    form = Format.HUMAN
    for flag in flags_and_rest(words)[0]:
        if flag.startswith("--format="):
            form = Format(flag.partition("=")[2])
        elif flag in ("--quiet", "-q"):
            form = Format.QUIET
    return form


class FlagsAnywhere(TyperGroup):
    """The group of all commands, which finds the flags of the program wherever they stand."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the words with the flags of the program in front."""
        flags, rest = flags_and_rest(args)
        return super().parse_args(ctx, [*flags, *rest])
