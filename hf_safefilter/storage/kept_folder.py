"""Folders of interrupted work: kept when it fails, so that the same work goes on there, and removed when it is done."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_safefilter.storage.scratch import SCRATCH, locked, release, scratch_folder

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

ABANDONED = 7 * 24 * 3600
"""Seconds after which work that nobody continued is removed."""


@contextmanager
def kept_folder(root: Path, name: str, *, lost: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """The folder `name` in `root`, with what an interrupted block left there; removed after a block that succeeds.

    While another process uses it, where the file system has no locks, where nothing may be written in `root`, or where
    others may write in it, an empty one that is removed in any case.

    Args:
        root: Where it is.
        name: What the work is known by.
        lost: Errors of the block after which it cannot be continued, so that the folder is removed, too.
    """
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        with scratch_folder() as own:
            yield own
        return
    _remove_abandoned(root)
    lock = locked(folder, wait=False)
    if lock is None or not _is_private(folder):
        release(lock)
        with scratch_folder(root) as own:
            yield own
        return
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    except lost:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        release(lock)


def _is_private(folder: Path) -> bool:
    """Whether it is this user's, and nobody else may write in it: what lies there is believed."""
    found = folder.stat()
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def _remove_abandoned(root: Path) -> None:
    for folder in root.iterdir():
        with suppress(OSError):
            if folder.name.endswith(SCRATCH) or time.time() - folder.stat().st_mtime < ABANDONED:
                continue
            lock = locked(folder, wait=False)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                release(lock)
