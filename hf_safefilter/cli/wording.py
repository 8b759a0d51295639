"""Options in messages: `name=value` in Python, a flag in a shell, a key in a recipe.

The package writes options in backticks in their Python form; this file turns them into flags or keys.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_OPTION = re.compile(r"`(\w+)=([^`]*)`")
_SINGULAR = {"columns": "column"}
"""Options whose flag takes one value and is repeated -> the name of that flag's parameter."""

_RANGES = ("freeze", "blocks", "initial")
"""Options whose flag takes a range of blocks, e.g. ``--freeze 2-4``."""

PROGRAM = "hf-safefilter"
"""The name of the program in messages, and of the script that `hf` looks for in a package of extensions."""


def program() -> str:
    """How the program was called: `hf` runs the script of an extension by its path in a folder of its own."""
    return "hf safefilter" if f"/extensions/{PROGRAM}/" in Path(sys.argv[0]).as_posix() else PROGRAM


def as_called(text: str) -> str:
    """`text` with commands as they were called: as an extension of `hf`, the program is not on the path."""
    return re.sub(rf"\b{PROGRAM}\b(?= [\w-])", program(), text)


def in_shell(text: str, flags: Mapping[str, str]) -> str:
    """`text` with the options in backticks as flags; an option that no command has only loses its backticks.

    Args:
        text: A message.
        flags: Parameter of a command -> its flag, e.g. ``{"max_length": "--max-length"}``.
    """

    def flag(name: str, value: Any) -> str:
        name = _SINGULAR.get(name, name)
        if name not in flags:
            return f"{name}={value}"
        if isinstance(value, Mapping):
            return " ".join(f"{flags[name]} {key}={shlex.quote(str(item))}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return f"{flags[name]} {('-' if name in _RANGES else ',').join(map(str, value))}"
        return flags[name] if value is True else f"{flags[name]} {_quoted(value)}"

    return _translated(text, flag)


def in_recipe(text: str) -> str:
    """`text` with the options in backticks as keys of a recipe."""
    import yaml

    def key(name: str, value: Any) -> str:
        if isinstance(value, (Mapping, list, tuple)):
            plain = list(value) if isinstance(value, tuple) else value
            return f"{name}: {yaml.safe_dump(plain, default_flow_style=True, sort_keys=False).strip()}"
        return f"{name}: {str(value).lower() if isinstance(value, bool) else value}"

    return _translated(text, key)


def _translated(text: str, write: Callable[[str, Any], str]) -> str:
    return _OPTION.sub(lambda match: write(match[1], _value(match[2])), text)


def _value(text: str) -> Any:
    """The value of a literal; any other text, and what holds a bare ..., as it is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return text if value is ... or (isinstance(value, (list, tuple)) and ... in value) else value


def _quoted(value: Any) -> str:
    return str(value) if str(value) == "..." else shlex.quote(str(value))
