"""Files and folders that are written whole or not at all, even if the process or the machine stops meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_safefilter.errors import OptionError
from hf_safefilter.storage.exchange import exchange
from hf_safefilter.storage.scratch import abandoned, scratch_file, scratch_folder, sweep

_LONGEST_NAME = 200  # bytes of a name: what is being written has a longer one
_ASIDE = "old"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A scratch file that replaces `target` when the block succeeds, and is deleted when it fails.

    The new content is on disk before the old file is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_file(target.parent, target.name) as scratch:
        yield scratch
        scratch.chmod(0o644)
        sync(scratch)
        os.replace(scratch, target)
        sync(target.parent)


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
    _restore(target)
    with scratch_folder(target.parent, target.name) as scratch:
        yield scratch
        scratch.chmod(0o755)
        for path in (*scratch.rglob("*"), scratch):
            if not path.is_symlink():
                sync(path)
        require_replaceable(target, marker)  # somebody may have put other files there meanwhile
        _put(scratch, target)
        sync(target.parent)


def _put(scratch: Path, target: Path) -> None:
    """Move a folder to `target`; what was there is deleted with the scratch folder."""
    if not target.exists():
        try:
            scratch.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
        else:
            return
    if not exchange(scratch, target):
        _swap(scratch, target)


def _swap(scratch: Path, target: Path) -> None:
    """As `_put`, in two calls: the old folder is moved aside first, and moved back after any failure."""
    with scratch_folder(target.parent, f"{target.name}.{_ASIDE}") as aside:
        old = aside / _ASIDE
        try:
            target.rename(old)
            scratch.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def _restore(target: Path) -> None:
    """Put back a folder that a killed process had moved aside, and not yet replaced."""
    for aside in abandoned(target.parent, f"{target.name}.{_ASIDE}"):
        if (aside / _ASIDE).is_dir() and not target.exists():
            (aside / _ASIDE).rename(target)
    sweep(target.parent, f"{target.name}.{_ASIDE}")
