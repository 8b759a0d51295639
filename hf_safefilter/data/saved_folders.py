"""Folders that `save_to_disk` has written: the files that they name are theirs, or the folder is not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.unpacked_size import require_modest
from hf_safefilter.errors import DataError, is_disk_full, is_out_of_memory
from hf_safefilter.storage.contained import fault_of_name, is_inside, is_plain

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return folder.is_dir() and any((folder / name).is_file() for name in (STATE, SPLITS))


def open_saved(folder: Path) -> Dataset | DatasetDict:
    """The rows of a folder, memory-mapped.

    Raises:
        DataError: It names files that are not its own, or is damaged.
    """
    from datasets import load_from_disk

    require_own_files(folder)
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged or hostile file trips over in the libraries that read it
        if is_disk_full(error) or is_out_of_memory(error):
            raise
        raise DataError(
            f"{folder.name} is damaged", found=f"{type(error).__name__}: {error}"[:200], fix="save the set again"
        ) from error


def require_own_files(folder: Path) -> None:
    """Raise if a folder names splits or files that are elsewhere, or its lists are damaged.

    Raises:
        DataError: It does, or they are.
    """
    if (folder / SPLITS).is_file():
        if (folder / STATE).is_file():  # `datasets` would read that, and not the splits
            raise _damaged(folder / SPLITS, f"there is a {STATE} beside it")
        splits = _read(folder / SPLITS).get("splits")
        if not isinstance(splits, list) or not splits:
            raise _damaged(folder / SPLITS, "no list of splits")
        for split in splits:
            inside = is_plain(split) and is_inside(folder, folder / split)
            if not inside or not (folder / split / STATE).is_file():
                raise DataError(
                    f"{folder.name} names a split that is not in it", found=str(split)[:80], fix="save the set again"
                )
            _require_files(folder / split)
    else:
        _require_files(folder)


def _require_files(folder: Path) -> None:
    files = _read(folder / STATE).get("_data_files")
    if not isinstance(files, list) or not all(isinstance(entry, dict) for entry in files):
        raise _damaged(folder / STATE, "no list of data files")
    for entry in files:
        name = entry.get("filename")
        fault = fault_of_name(folder, name, (".arrow",))
        if fault is not None:
            raise DataError(
                f"{folder.name} names a file of rows that {fault}", found=str(name)[:80], fix="save the set again"
            )
        _require_modest(folder / str(name))


def _require_modest(path: Path) -> None:
    import pyarrow as pa

    try:
        require_modest(path, "arrow")
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, type(error).__name__) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, type(error).__name__) from error
    if not isinstance(body, dict):
        raise _damaged(path, type(body).__name__)
    return body


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path.parent.name}/{path.name} is damaged", found=reason, fix="save the set again: save_to_disk")
