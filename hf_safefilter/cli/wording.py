"""Messages in the language of their surface: an option is `name=value` in Python, a flag in a shell, a key in a recipe.

The package writes options in backticks in their Python form; here they are turned into the reader's own.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

_OPTION = re.compile(r"`(\w+)=([^`]*)`")
_ONE_EACH = {"columns": "column"}
"""Options that a shell takes one at a time, and what it calls them."""


def in_shell(text: str, flags: Mapping[str, str]) -> str:
    """`text` with the options in backticks as flags; an option that no command has stands there without backticks.

    Args:
        text: a message.
        flags: parameter of a command -> its flag, e.g. ``{"max_length": "--max-length"}``.
    """

    def flag(name: str, value: Any) -> str:
        name = _ONE_EACH.get(name, name)
        if name not in flags:
            return f"{name}={value}"
        if isinstance(value, Mapping):
            return " ".join(f"{flags[name]} {key}={shlex.quote(str(one))}" for key, one in value.items())
        if isinstance(value, (list, tuple)):
            return f"{flags[name]} {','.join(map(str, value))}"
        return flags[name] if value is True else f"{flags[name]} {_quoted(value)}"

    return _translated(text, flag)


def in_recipe(text: str) -> str:
    """`text` with the options in backticks as keys of a recipe."""
    import yaml

    def key(name: str, value: Any) -> str:
        if isinstance(value, (Mapping, list, tuple)):
            plain = list(value) if isinstance(value, tuple) else value
            return f"{name}: {yaml.safe_dump(plain, default_flow_style=True, sort_keys=False).strip()}"
        return f"{name}: {value}"

    return _translated(text, key)


def _translated(text: str, word: Callable[[str, Any], str]) -> str:
    return _OPTION.sub(lambda match: word(match[1], _value(match[2])), text)


def _value(text: str) -> Any:
    """A literal as its value; anything else, "..." among it, as it stands."""
    try:
        return ast.literal_eval(text) if text != "..." else text
    except (ValueError, SyntaxError):
        return text


def _quoted(value: Any) -> str:
    return str(value) if str(value) == "..." else shlex.quote(str(value))
