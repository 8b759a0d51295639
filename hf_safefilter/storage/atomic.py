"""Files and folders that are there whole or not at all, whatever ends the process or the machine meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_safefilter.errors import OptionError

SCRATCH = ".tmp"
"""Ending of a file that is being written."""


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A scratch file that takes the place of `target` when the block ends well, and vanishes when it does not.

    What was written is on disk before the old file goes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=SCRATCH, dir=target.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o644)
        sync(scratch)
        os.replace(scratch, target)
        sync(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def atomic_bytes(target: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old one or the new one, never half."""
    with atomic_file(target) as scratch:
        scratch.write_bytes(content)


def atomic_text(target: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never half."""
    atomic_bytes(target, text.encode())


def sync(path: Path) -> None:
    """Have a file, or the entries of a folder, written to disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_replaceable(target: Path, marker: str | None) -> None:
    """Raise unless `atomic_folder` may write `target`: asked before hours of work, and not only after them.

    Raises:
        OptionError: `target` is somebody else's, or cannot be there.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OptionError(f"{target} is there and is not a folder", fix="choose another output")
    if target.exists() and any(target.iterdir()) and not (marker and (target / marker).is_file()):
        raise OptionError(f"{target} holds other files, which would be lost", fix="choose another output folder")


@contextmanager
def atomic_folder(target: Path, *, marker: str | None = None) -> Iterator[Path]:
    """A scratch folder that takes the place of `target` when the block ends well, and vanishes when it does not.

    Args:
        target: the folder to write. One that is there already is replaced only if it is empty or holds the file
            `marker`, by which earlier output of the same kind is known: a person's own folder is never replaced.
        marker: name of that file.

    Raises:
        OptionError: `target` is somebody else's.
    """
    target = Path(target)
    require_replaceable(target, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        for path in (*scratch.rglob("*"), scratch):
            if not path.is_symlink():
                sync(path)
        _swap(scratch, target)
        sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    # A folder cannot be replaced in one call: the old one steps aside first, and comes back whatever goes wrong then.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    old = aside / "old"
    try:
        target.rename(old)
        scratch.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        if not old.exists() or target.exists():
            with suppress(OSError):
                shutil.rmtree(aside)
