"""Paths that people and recipes give: asked about without an exception from the depths."""

from __future__ import annotations

from pathlib import Path


def is_there(path: str | Path) -> bool:
    """Whether a file or folder exists; a name that no file system takes (too long, a NUL in it) does not."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def is_file(path: str | Path) -> bool:
    """Whether a file exists; see `is_there`."""
    return is_there(path) and Path(path).expanduser().is_file()


def is_folder(path: str | Path) -> bool:
    """Whether a folder exists; see `is_there`."""
    return is_there(path) and Path(path).expanduser().is_dir()


def shortened(text: str, most: int = 120) -> str:
    """A name as a message may show it."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
