"""Looking after the row cache: its size, damaged files, and removing what was not used for long."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hf_safefilter.cache.part import DAMAGED, PART, set_aside, verify
from hf_safefilter.cache.space import FACTS, FORMAT, read_facts, rows_root
from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.storage.scratch import SCRATCH, sweep
from hf_safefilter.storage.signature import key_name

logger = logging.getLogger(__name__)

_STALE = 3600  # seconds: no write takes that long, so an older scratch file was left by a process that died


@dataclass(frozen=True, slots=True)
class SpaceUsage:
    """What one space of the cache holds.

    Attributes:
        space: Name of its folder.
        model: Name of the model when the first row was cached; "unknown" where the description is damaged.
        revision, spans, dtype: Some of the facts that decide its vectors.
        layers: Layers and positions with cached rows.
        parts, damaged: Number of whole and of damaged files.
        size: Bytes of all files together.
        references: Whether it holds what was read in a single call, as references are.
        current_format: Whether this version of the format wrote it, with the key of this user.
    """

    space: str
    model: str
    revision: str
    spans: str
    dtype: str
    layers: tuple[str, ...]
    parts: int
    damaged: int
    size: int
    references: bool
    current_format: bool


def spaces_in_use() -> list[SpaceUsage]:
    """All spaces that are not empty, the largest first."""
    spaces = [_usage(folder) for folder in _space_folders()]
    return sorted((space for space in spaces if space.size), key=lambda space: -space.size)


def _space_folders() -> Iterator[Path]:
    root = rows_root()
    for folder in _listed(root):
        if folder.is_dir() and not folder.is_symlink():
            yield folder


def _usage(folder: Path) -> SpaceUsage:
    try:
        label, facts = read_facts(folder)
    except IntegrityError as error:
        logger.warning("%s", error)
        label, facts = "unknown", {}
    files = _files(folder)
    parts = [path for path in files if path.suffix == PART]
    return SpaceUsage(
        space=folder.name,
        model=label,
        revision=str(facts.get("revision", "")),
        spans=str(facts.get("spans", "")),
        dtype=str(facts.get("dtype", "")),
        layers=tuple(sorted({path.parent.name for path in parts}, key=lambda name: (len(name), name))),
        parts=len(parts),
        damaged=sum(path.suffix == DAMAGED for path in files),
        size=sum(_size(path) for path in files),
        references="call" in facts,
        current_format=(facts.get("format"), facts.get("key")) == (FORMAT, key_name()),
    )


def _files(folder: Path) -> list[Path]:
    paths = (path for layer in _listed(folder) if layer.is_dir() for path in _listed(layer))
    return [path for path in paths if path.suffix in (PART, DAMAGED, SCRATCH) and not path.is_symlink()]


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where another process has just removed it, or it is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(path: Path) -> int:
    stat = _stat(path)
    return 0 if stat is None else stat.st_size


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):  # another process removed it
        return None


def check() -> tuple[int, list[Path]]:
    """Verify every part of this version of the format and this user; damaged ones are set aside.

    Returns:
        How many parts are whole, and the former paths of those that are damaged.
    """
    whole, damaged = 0, []
    for space in spaces_in_use():
        for path in _files(rows_root() / space.space) if space.current_format else ():
            try:
                if path.suffix == PART:
                    verify(path)
                    whole += 1
            except FileNotFoundError:
                continue
            except IntegrityError as error:
                set_aside(path, error)
                damaged.append(path)
    return whole, damaged


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of `prune`: number of files removed, bytes freed, bytes left."""

    removed: int
    freed: int
    left: int


def prune(max_size: int) -> Pruned:
    """Remove damaged and half-written files, then the longest unused parts until `max_size` bytes are left.

    Processes that use the cache are not disturbed: parts they have open stay readable, other rows are read again.
    """
    for folder in _space_folders():
        for place in (folder, *(path for path in _listed(folder) if path.is_dir() and not path.is_symlink())):
            sweep(place)
    files = [path for folder in _space_folders() for path in _files(folder)]
    stats = ((path, stat) for path in files if (stat := _stat(path)) is not None)
    by_age = sorted(stats, key=lambda pair: pair[1].st_mtime)
    useless = [(p, s) for p, s in by_age if p.suffix == DAMAGED or (p.suffix == SCRATCH and _stale(s.st_mtime))]
    total = sum(stat.st_size for _, stat in by_age)
    removed = freed = 0
    for path, stat in [*useless, *((p, s) for p, s in by_age if p.suffix == PART)]:
        if (path, stat) in useless or total - freed > max_size:
            freed += stat.st_size
            with suppress(FileNotFoundError):  # another process was faster
                path.unlink()
                removed += 1
    for folder in list(_space_folders()):
        _remove_if_abandoned(folder)
    return Pruned(removed, freed, total - freed)


def _stale(written: float) -> bool:
    return time.time() - written > _STALE


def _remove_if_abandoned(folder: Path) -> None:
    # Another process may be about to write into a folder that is empty and new.
    inside = _listed(folder)
    folders = [folder, *(path for path in inside if path.is_dir())]
    recent = any(not _stale(stat.st_mtime) for stat in filter(None, map(_stat, folders)))
    left = {path.name for path in inside if not path.is_dir()}
    if not recent and left <= {FACTS} and not any(_listed(layer) for layer in folders[1:]):
        shutil.rmtree(folder, ignore_errors=True)


def size_of(text: str) -> int:
    """``"5GB"`` -> 5,000,000,000; also KB, MB, TB, their binary forms (GiB ...) and plain bytes.

    Raises:
        OptionError: `text` is not a size.
    """
    units = {unit: 1000**n for n, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
    units |= {unit: 1024**n for n, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), 1)} | {"": 1}
    number = text.strip().upper().rstrip("KMGTIB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError) as error:
        raise OptionError(f"{text!r} is not a size", fix="use e.g. 5GB, 500MB or 0") from error
    if not 0 <= size < float("inf"):
        raise OptionError(f"{text!r} is not a size", fix="use e.g. 5GB, 500MB or 0")
    return int(size)
