"""One rule for every file in a folder that came from elsewhere: plainly named, regular, inside, of the kind expected.

What such a folder names (weights in an index, data files in a card, splits in a list) is only a wish: it is read where
the rule holds, and refused with the reason where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

_PART = re.compile(r"[A-Za-z0-9_][\w.,=@+ -]*")


def is_plain(name: object) -> bool:
    """Whether `name` is that of a file itself: no path, no address, no pattern, not hidden."""
    return isinstance(name, str) and len(name) <= 255 and _PART.fullmatch(name) is not None


def is_inside(folder: Path, path: Path) -> bool:
    """Whether `path`, links followed, lies in `folder`, or in the store of files of the Hub's cache that belongs to it.

    The Hub's cache keeps a snapshot as links into the folder ``blobs`` beside all snapshots of the repository.
    """
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, a NUL
        return False
    return real.is_relative_to(root) or any(
        parent.name == "snapshots" and _is_store(blobs := parent.parent / "blobs") and real.is_relative_to(blobs)
        for parent in root.parents
    )


def _is_store(blobs: Path) -> bool:
    return blobs.is_dir() and not blobs.is_symlink()


def fault_of(folder: Path, path: Path, endings: Collection[str] = (), *, links: bool = True) -> str | None:
    """Why a file of a folder may not be used, as the end of a sentence about it; None if it may.

    Args:
        folder: The folder that came from elsewhere.
        path: The file.
        endings: How its name may end; of any kind if empty.
        links: Whether it may be a link to another file that is inside.
    """
    if endings and not path.name.lower().endswith(tuple(endings)):
        return f"is not a {' or '.join(endings)} file"
    if path.is_symlink() and not links:
        return "is a link, not a file"
    if not is_inside(folder, path):
        return "is outside the folder"
    if not path.is_file():
        return "is not a regular file" if path.exists() else "is missing"
    return None


def fault_of_name(folder: Path, name: object, endings: Collection[str] = ()) -> str | None:
    """The same for a file that is named by another file of the folder."""
    if not is_plain(name):
        return "is not the plain name of a file"
    return fault_of(folder, folder / str(name), endings)
