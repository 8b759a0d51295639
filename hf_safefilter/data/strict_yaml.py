"""YAML that people write: safe, bounded, and without the silent choices that PyYAML makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_safefilter.errors import OptionError

_MOST_CHARACTERS = 1_000_000
_MOST_DEEP = 16
_BOOLEAN, _TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"


def load_yaml(text: str, name: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML.
        name: What messages call it.

    Raises:
        OptionError: It is not YAML, too large or too deep, uses aliases, repeats a key, or holds a key or a number
            that Python cannot hold.
    """
    if len(text) > _MOST_CHARACTERS:
        raise OptionError(
            f"{name} has {len(text)} characters", fix="it should be a page of text: check which file it is"
        )
    try:
        _require_plain(text, name)
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (derived from SafeLoader)
    except yaml.YAMLError as error:
        raise OptionError(f"{name} is not YAML", found=str(error), fix="correct the line named above") from error
    except OptionError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(f"{name} holds a value that is no value", found=reason, fix="correct it") from error


def front_matter(path: Path) -> dict[str, Any]:
    """What stands between the lines of dashes at the top of a README; empty where there are none.

    Raises:
        OptionError: See `load_yaml`.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return {}
    body = load_yaml(text[4:].split("\n---", 1)[0], path.name)
    return body if isinstance(body, dict) else {}


def _require_plain(text: str, name: str) -> None:
    """Raise for what nobody needs here and a parser can drown in: aliases, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise OptionError(f"{name} uses an alias (*{event.anchor})", fix="write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEEP:
            raise OptionError(f"{name} is nested more than {_MOST_DEEP} deep", fix="two levels or three are enough")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error; PyYAML silently uses the last one.

    A key is the word that is written: to PyYAML, which follows YAML 1.1, ``on: pair_shift`` has the key True.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            if key.tag == _BOOLEAN:
                key.tag = _TEXT
        return super().construct_mapping(node, deep)
