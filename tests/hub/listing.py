"""Files as the Hub lists them: entries of a tree with their folders, and the commit that last changed each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from .store import Commit, File, git_oid


def entries(files: Mapping[str, File], folder: str = "") -> list[dict[str, Any]]:
    """Every file and every folder below `folder`, by path."""
    below = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
    found = {path: _file(path, file) for path, file in below.items()}
    for path in below:
        for parent in map(str, PurePosixPath(path).parents):
            if parent != "." and parent not in found and (not folder or parent.startswith(f"{folder}/")):
                found[parent] = {"type": "directory", "path": parent, "oid": _folder_oid(below, parent), "size": 0}
    return [found[path] for path in sorted(found)]


def last_change(history: list[Commit], path: str) -> dict[str, str]:
    """The newest commit of `history` (newest first) in which the file or folder at `path` differs from its parent's."""
    states = [_folder_oid(commit.files, path) for commit in history]
    changed = next(k for k in range(len(history)) if k + 1 == len(history) or states[k] != states[k + 1])
    commit = history[changed]
    return {"id": commit.id, "title": commit.title, "date": commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")}


def _file(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return entry


def _folder_oid(files: Mapping[str, File], folder: str) -> str:
    inside = sorted((p, f.oid) for p, f in files.items() if p == folder or p.startswith(f"{folder}/"))
    return git_oid(json.dumps(inside).encode(), "tree")
