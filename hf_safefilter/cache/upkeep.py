"""What lies in the row cache, whether it is whole, and what may go."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_safefilter.cache.part import DAMAGED, PART, set_aside, verify
from hf_safefilter.cache.space import FACTS, FORMAT, read_facts, rows_root
from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.storage.atomic import SCRATCH

logger = logging.getLogger(__name__)

_STALE = 3600  # seconds: no write takes as long; a scratch file older than this was left by a process that died


@dataclass(frozen=True, slots=True)
class Kept:
    """One space of the cache.

    Attributes:
        space: name of its folder.
        model: what it was called when the first row was kept; "unknown" where the description is damaged.
        revision, position, dtype: some of what decides its vectors.
        layers: what is there.
        parts, damaged: files.
        size: bytes, all together.
        ours: written by this version of the format.
    """

    space: str
    model: str
    revision: str
    position: str
    dtype: str
    layers: tuple[str, ...]
    parts: int
    damaged: int
    size: int
    ours: bool


def kept() -> list[Kept]:
    """All spaces that hold anything, the largest first."""
    return sorted((one for one in map(_described, _spaces()) if one.size), key=lambda one: -one.size)


def _spaces() -> Iterator[Path]:
    root = rows_root()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and not folder.is_symlink():
            yield folder


def _described(folder: Path) -> Kept:
    try:
        label, facts = read_facts(folder)
    except IntegrityError as error:
        logger.warning("%s", error)
        label, facts = "unknown", {}
    files = _files(folder)
    parts = [path for path in files if path.suffix == PART]
    told = (str(facts.get(name, "")) for name in ("revision", "position", "dtype"))
    layers = tuple(sorted({path.parent.name for path in parts}, key=lambda name: (len(name), name)))
    damaged = sum(path.suffix == DAMAGED for path in files)
    size = sum(_size(path) for path in files)
    return Kept(folder.name, label, *told, layers, len(parts), damaged, size, facts.get("format") == FORMAT)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.suffix in (PART, DAMAGED, SCRATCH) and not path.is_symlink()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process tidied up
        return 0


def check() -> tuple[int, list[Path]]:
    """Verify every part of this version's format; damaged ones are set aside.

    Returns:
        How many were whole, and which were not (by their old names).
    """
    whole, damaged = 0, []
    for one in kept():
        for path in _files(rows_root() / one.space) if one.ours else ():
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
    """What was removed, and what is left: files and bytes."""

    removed: int
    freed: int
    left: int


def prune(max_size: int) -> Pruned:
    """Remove damaged and half-written files, then the longest unused parts until `max_size` bytes are left.

    A process that is reading goes on: what it has open stays readable, what it has not is read anew.
    """
    files = [path for folder in _spaces() for path in _files(folder)]
    facts = sorted(((path, path.stat()) for path in files if path.exists()), key=lambda pair: pair[1].st_mtime)
    useless = [(p, s) for p, s in facts if p.suffix == DAMAGED or (p.suffix == SCRATCH and _stale(s.st_mtime))]
    total = sum(stat.st_size for _, stat in facts)
    removed = freed = 0
    for path, stat in [*useless, *((p, s) for p, s in facts if p.suffix == PART)]:
        if (path, stat) in useless or total - freed > max_size:
            path.unlink(missing_ok=True)
            removed, freed = removed + 1, freed + stat.st_size
    for folder in list(_spaces()):
        _remove_if_left(folder)
    return Pruned(removed, freed, total - freed)


def _stale(written: float) -> bool:
    return time.time() - written > _STALE


def _remove_if_left(folder: Path) -> None:
    # a folder that is empty and young may be somebody's who is about to write there
    young = any(not _stale(path.stat().st_mtime) for path in [folder, *folder.glob("*/")])
    if not young and {path.name for path in folder.rglob("*") if not path.is_dir()} <= {FACTS}:
        shutil.rmtree(folder, ignore_errors=True)


def size_of(text: str) -> int:
    """``"5GB"`` -> 5,000,000,000; also KB, MB, TB, their binary kin (GiB ...) and plain bytes.

    Raises:
        OptionError: no size.
    """
    units = {unit: 1000**n for n, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
    units |= {unit: 1024**n for n, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), 1)} | {"": 1}
    number = text.strip().upper().rstrip("KMGTIB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError) as error:
        raise OptionError(f"{text!r} is no size", fix="use e.g. 5GB, 500MB or 0") from error
    if not 0 <= size < float("inf"):
        raise OptionError(f"{text!r} is no size", fix="use e.g. 5GB, 500MB or 0")
    return int(size)
