"""Scratch files and folders: locked by the process that writes them, so that what a killed process left is removed.

The lock belongs to the process and ends with it, however it ends. What is not locked is nobody's, and the next process
that writes at the same place removes it. Where a file system has no locks, and for names of other machines (whose locks
may not be seen here), nothing is removed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCKS = os.name == "posix"
if _LOCKS:
    import fcntl

SCRATCH = ".tmp"
"""Ending of what is being written."""

_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_SHARED = "safefilter"


@contextmanager
def scratch_file(folder: Path, name: str) -> Iterator[Path]:
    """An empty file in `folder`, hidden and named after `name`; deleted after the block if it is still there."""

    def make() -> Path:
        handle, path = tempfile.mkstemp(prefix=_prefix(name), suffix=SCRATCH, dir=folder)
        os.close(handle)
        return Path(path)

    sweep(folder, name)
    path, lock = _own(make)
    try:
        yield path
    finally:
        release(lock)
        path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(folder: Path | None = None, name: str = _SHARED) -> Iterator[Path]:
    """An empty folder in `folder`, hidden and named after `name`; deleted after the block.

    Args:
        folder: The folder above it; None: that of the system for temporary files.
        name: What it is named after.
    """
    above = Path(tempfile.gettempdir()) if folder is None else folder
    sweep(above, name)
    path, lock = _own(lambda: Path(tempfile.mkdtemp(prefix=_prefix(name), suffix=SCRATCH, dir=above)))
    try:
        yield path
    finally:
        release(lock)
        _remove(path)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove scratch files and folders in `folder` whose process has ended; those named after `name`, if it is given.

    What cannot be removed is left to the next process: no result depends on it.
    """
    for path in abandoned(folder, name):
        _remove(path)


def abandoned(folder: Path, name: str | None = None) -> Iterator[Path]:
    """Scratch files and folders whose process has ended, each locked while it is looked at."""
    named = re.escape(name) if name is not None else ".+"
    pattern = re.compile(rf"\.{named}\.{_MACHINE}-[a-z0-9_]{{8}}{re.escape(SCRATCH)}", re.DOTALL)
    try:
        paths = [path for path in Path(folder).iterdir() if pattern.fullmatch(path.name)]
    except OSError:  # there is no such folder, or it cannot be read
        return
    for path in paths:
        lock = locked(path, wait=False)
        if lock is None:
            continue
        try:
            yield path
        finally:
            release(lock)


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            path.unlink()
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    except BaseException:  # stopped meanwhile, e.g. by Ctrl-C
        shutil.rmtree(path, ignore_errors=True)
        raise


def _prefix(name: str) -> str:
    return f".{name}.{_MACHINE}-"


def _own(make: Callable[[], Path]) -> tuple[Path, int | None]:
    """What `make` makes, locked; made again if another process took it for abandoned before it was locked."""
    while True:
        path = make()
        if not _LOCKS:
            return path, None
        lock = locked(path, wait=True)
        if lock is not None:
            return path, lock
        if path.exists():  # this file system has no locks
            return path, None


def locked(path: Path, *, wait: bool) -> int | None:
    """A handle that holds the lock of what is at `path`; None if another process holds it or it is gone."""
    if not _LOCKS:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with suppress(OSError):  # another process holds it, or this file system has no locks
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(handle), path.lstat()):
            return handle
    os.close(handle)
    return None


def release(lock: int | None) -> None:
    """Give up what `locked` returned."""
    if lock is not None:
        os.close(lock)
