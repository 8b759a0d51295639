"""What the Tab key offers: scores, layers and columns of the folder or file that is named, read without heavy imports.

Whatever cannot be read offers nothing: a key is no place for an error.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from hf_safefilter.columns import EMBEDDING_PREFIX, SCORE_SUFFIX

_NAMED_BY = ("scored", "embedded", "decided", "rows")
"""Arguments that name a folder or file."""

_FEATURES = "dataset_info.json"
_LONGEST = 1 << 20  # bytes of a first line


def methods(context: typer.Context, incomplete: str) -> list[str]:
    """Names of methods."""
    from hf_safefilter.scores import METHODS

    return _beginning(list(METHODS), incomplete)


def scores(context: typer.Context, incomplete: str) -> list[str]:
    """Score columns of the folder that is named."""
    return _beginning([name for name in _columns(context) if name.endswith(SCORE_SUFFIX)], incomplete)


def layers(context: typer.Context, incomplete: str) -> list[str]:
    """Layers that are embedded in the folder that is named."""
    names = [name.removeprefix(EMBEDDING_PREFIX) for name in _columns(context) if name.startswith(EMBEDDING_PREFIX)]
    return _beginning([name for name in names if "_" not in name], incomplete)


def columns(context: typer.Context, incomplete: str) -> list[str]:
    """Columns of the folder or file that is named, but those of vectors."""
    return _beginning([name for name in _columns(context) if not name.startswith(EMBEDDING_PREFIX)], incomplete)


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _columns(context: typer.Context) -> list[str]:
    named = [context.params[name] for name in _NAMED_BY if context.params.get(name)]
    left = context.args  # where the words stay, unparsed, behind an option that waits for its value
    try:
        path = next(path for word in (*named, *left) if (path := Path(word).expanduser()).exists())
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except (StopIteration, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _of_folder(folder: Path) -> list[str]:
    """The columns of rows that `save_to_disk` has written there, or in a folder inside, such as a split."""
    places = [folder, folder / "scored", *sorted(path for path in folder.iterdir() if path.is_dir())]
    info = next(place / _FEATURES for place in places if (place / _FEATURES).is_file())
    return list(json.loads(info.read_text(encoding="utf-8"))["features"])


def _of_file(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    with path.open(encoding="utf-8") as lines:
        first = lines.readline(_LONGEST)
    return first.strip().split(",") if path.suffix == ".csv" else list(json.loads(first))
