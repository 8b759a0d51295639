"""Files that the README of a data set names for its splits: patterns inside the set, never paths or addresses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_safefilter.data.strict_yaml import front_matter
from hf_safefilter.errors import DataError

_WHOLE = "train"  # the split of files that are named for none, as `datasets` calls it


def sets_in(card: Path) -> dict[str, dict[str, list[str]]]:
    """Name of each set -> split -> patterns, as the README's metadata state them; empty where there are none.

    Raises:
        DataError: What they state is not a list of names.
    """
    configs = front_matter(card).get("configs")
    if not isinstance(configs, list):
        return {}
    sets: dict[str, dict[str, list[str]]] = {}
    for number, config in enumerate(configs):
        if isinstance(config, Mapping):
            sets[str(config.get("config_name", number))] = _splits(config)
    return sets


def _splits(config: Mapping[str, Any]) -> dict[str, list[str]]:
    files = config.get("data_files")
    splits: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else [] if files is None else [files]:
        split, paths = (
            (entry.get("split", _WHOLE), entry.get("path")) if isinstance(entry, Mapping) else (_WHOLE, entry)
        )
        for pattern in paths if isinstance(paths, list) else [paths]:
            if not isinstance(pattern, str) or not pattern.strip():
                raise DataError(
                    "the README names files that are no names", found=str(pattern)[:80], fix="correct data_files"
                )
            if not isinstance(split, str):
                raise DataError(
                    "the README names a split that is no name", found=str(split)[:80], fix="correct data_files"
                )
            folder = config.get("data_dir")
            splits.setdefault(split, []).append(pattern if folder is None else f"{folder}/{pattern}")
    return splits


def require_relative(pattern: str, whose: str) -> None:
    """Raise if a pattern leads out of the set: a path from the root or from home, upwards, or an address.

    Raises:
        DataError: It does.
    """
    leads_out = pattern.startswith(("/", "~", "\\")) or ".." in PurePosixPath(pattern.replace("\\", "/")).parts
    if leads_out or ":" in pattern or "\0" in pattern:
        raise DataError(
            f"the README of {whose} names files outside it", found=pattern[:80], fix="name the files yourself"
        )
