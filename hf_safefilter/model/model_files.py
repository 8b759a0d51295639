"""The files of a model: what its index and its configuration name is weights, inside, and hashed, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_safefilter.errors import ModelError
from hf_safefilter.storage.contained import fault_of, fault_of_name, is_plain

WEIGHTS = ".safetensors"
INDEX = f"model{WEIGHTS}.index.json"
_DEEPEST = 64  # levels of a JSON file: real ones have fewer than ten
_LARGEST = 1 << 28  # bytes of a JSON file: the largest tokenizers have 40 million


def require_contained(folder: Path, paths: Iterable[Path]) -> None:
    """Raise unless every file that decides what a model computes is a regular file of its folder.

    Raises:
        ModelError: A file is elsewhere, or the index names something that is not weights of this folder.
    """
    for path in paths:
        fault = fault_of(folder, path)
        if fault is not None:
            raise ModelError(
                f"the file {path.relative_to(folder)} of the model {folder.name} {fault}",
                fix="copy the file itself into the folder, if you trust it",
            )
    index = folder / INDEX
    if index.is_file():
        for name in names_in_index(index):
            fault = fault_of_name(folder, name, (WEIGHTS,))
            if fault is not None:
                raise _strange(index, name, fault)


def require_plain_names(index: Path) -> None:
    """Raise if the index of a model on the Hub names something else than safetensors beside it.

    Raises:
        ModelError: It does.
    """
    for name in names_in_index(index):
        if not is_plain(name) or not name.endswith(WEIGHTS):
            raise _strange(index, name, f"is not the plain name of a {WEIGHTS} file")


def names_in_index(index: Path) -> list[Any]:
    """The values of an index's weight map, each once; they may be anything.

    Raises:
        ModelError: The file is not an index.
    """
    body = read_json(index)
    weights = body.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ModelError(f"{index.name} is not an index of weights", found="no weight_map", fix="download it again")
    return sorted({name if isinstance(name, str) else repr(name) for name in weights.values()})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        ModelError: It holds something else, is too large, or is nested more deeply than any real one.
    """
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"{path.name} has {path.stat().st_size} bytes", fix="check which file it is")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not JSON", found=_reason(error), fix="download it again") from error
    if not isinstance(body, dict):
        raise ModelError(f"{path.name} is not a JSON object", found=type(body).__name__, fix="download it again")
    if _depth(body) > _DEEPEST:
        raise ModelError(f"{path.name} is nested more than {_DEEPEST} deep", fix="download it again")
    return body


def _depth(body: Any) -> int:
    level, depth = [body], 0
    while level:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    return depth


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def _strange(index: Path, name: object, fault: str) -> ModelError:
    return ModelError(
        f"{index.name} names {str(name)[:80]!r}, which {fault}",
        fix="use a model whose weights are safetensors files in its own folder",
    )
