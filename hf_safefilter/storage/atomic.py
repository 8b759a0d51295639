"""Files and folders that are written whole or not at all, even if the process or the machine stops meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_safefilter.errors import OptionError

_LONGEST_NAME = 200  # bytes of a name: what is being written has a longer one

SCRATCH = ".tmp"
"""Ending of a file that is being written."""


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A scratch file that replaces `target` when the block succeeds, and is deleted when it fails.

    The new content is on disk before the old file is replaced.
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
    """Write a file so that a reader sees the old one or the new one, never a part of one."""
    with atomic_file(target) as scratch:
        scratch.write_bytes(content)


def atomic_text(target: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part of one."""
    atomic_bytes(target, text.encode())


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if path.is_dir() and os.name != "posix":  # other systems cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_replaceable(target: Path, marker: str | None) -> None:
    """Raise unless `atomic_folder` may write `target`; to be called before hours of work, not only after them.

    Raises:
        OptionError: `target` holds other files, is not a folder, or cannot be written where it is.
    """
    require_writable(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OptionError(f"{target} exists and is not a folder", fix="choose another output folder")
    if target.exists() and any(target.iterdir()) and not (marker and (target / marker).is_file()):
        raise OptionError(f"{target} holds other files, which would be lost", fix="choose another output folder")


def require_writable(target: Path) -> None:
    """Raise unless a file or folder can be written at `target`.

    Raises:
        OptionError: No file system takes the name, something above it is a file, or the folder may not be written.
    """
    try:
        name = os.fsencode(target.name)
        above = next((folder for folder in target.absolute().parents if os.path.lexists(folder)), Path("/"))
    except (OSError, ValueError, UnicodeError) as error:
        raise OptionError(f"no file can be called {str(target)[:80]!r}", fix="choose another name") from error
    if (
        "\0" in str(target)
        or len(name) > _LONGEST_NAME
        or not target.name
        or any(len(os.fsencode(part)) > 255 for part in target.parts)
    ):
        raise OptionError(f"no file can be called {str(target)[:80]!r}", fix="choose another, shorter name")
    if not above.is_dir():
        raise OptionError(f"{target} cannot be written: {above} is a file", fix="choose another output folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OptionError(f"{target} cannot be written: {above} is read-only", fix="choose another output folder")


@contextmanager
def atomic_folder(target: Path, *, marker: str | None = None) -> Iterator[Path]:
    """A scratch folder that replaces `target` when the block succeeds, and is deleted when it fails.

    Args:
        target: The folder to write. An existing one is replaced only if it is empty or holds the file `marker`, so
            that only earlier output of the same kind is replaced.
        marker: Name of a file that every output of this kind holds.

    Raises:
        OptionError: `target` holds other files, or is not a folder.
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
    # A folder cannot be replaced in one call: the old one is moved aside first, and moved back after any failure.
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
