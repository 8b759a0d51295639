"""The record of a folder: name and sha256 of each file in it, signed by the machine that has written them.

It binds what lies in the folder together (rows, vectors, scores, the steps that gave them), and tells a folder that was
made here from one that came from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from hf_safefilter.errors import IntegrityError
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.signature import is_signed, signed

RECORD = "signed.json"

_DERIVED = re.compile(r"(cache-\w+\.arrow|tmp\w+)")
"""Files that `datasets` lays beside rows which a user maps or filters. This package reads none of them."""


def record_files(folder: Path, kind: str, names: Sequence[str] | None = None) -> None:
    """Write the record of a folder that is complete but for it.

    Args:
        folder: The folder.
        kind: What the folder holds; a record of another kind does not count.
        names: The files to record; all if None.
    """
    digests = {name: file_sha256(folder / name) for name in (_names(folder) if names is None else names)}
    body = signed({"files": digests, "all": names is None}, kind)
    (folder / RECORD).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def require_recorded(folder: Path, kind: str, *, trust_vectors: bool) -> bool:
    """Raise unless the files of a folder are those that were recorded, by this machine or by one that the user trusts.

    Args:
        folder: The folder.
        kind: What it should hold.
        trust_vectors: Whether the user trusts who has written it, if it was not this machine.

    Returns:
        Whether it was this machine.

    Raises:
        IntegrityError: A file was altered, added or removed, or the folder is from elsewhere and not trusted.
    """
    record = _read(folder / RECORD)
    ours = is_signed(record, kind)
    if not ours and not trust_vectors:
        raise IntegrityError(
            f"{folder} was not written by this user on this machine, so what it says is not believed",
            found="another signature, or a record that was changed" if record else f"no {RECORD}",
            fix="make it again here, from the rows; or, if you trust who wrote it, say `trust_vectors=True`: the card "
            "then states it",
        )
    recorded = record.get("files")
    if isinstance(recorded, dict):
        _compare(folder, {str(name): digest for name, digest in recorded.items()}, whole=bool(record.get("all")))
    return ours


def _names(folder: Path) -> list[str]:
    """Names of all files within a folder, except its record."""
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    return [name for path in paths if (name := path.relative_to(folder).as_posix()) != RECORD]


def _compare(folder: Path, recorded: dict[str, object], *, whole: bool) -> None:
    present = _names(folder)
    for name in sorted({*recorded, *present} if whole else recorded):
        if name not in present:
            change = "was removed"
        elif name not in recorded:
            if _DERIVED.fullmatch(name.rpartition("/")[2]):
                continue
            change = "was added"
        elif not (folder / name).is_file() or file_sha256(folder / name) != recorded[name]:
            change = "was altered"
        else:
            continue
        raise IntegrityError(
            f"{folder} is damaged: {name} {change} since it was written", fix="make it again, or restore what it held"
        )


def _read(path: Path) -> dict[str, object]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
