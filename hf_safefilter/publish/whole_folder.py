"""Whether a published folder is what its Croissant record describes: each file to the last byte, and no other data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_safefilter.errors import IntegrityError
from hf_safefilter.publish.croissant import RECORD, TEXTS, croissant, described_in, require_described
from hf_safefilter.publish.data_files import read_published
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.contained import fault_of
from hf_safefilter.storage.recorded_files import RECORD as SIGNED

if TYPE_CHECKING:
    from hf_safefilter.publish.provenance import Provenance

_OF_THE_HUB = (".gitattributes", ".cache/")
"""What the Hub and its downloads lay into a folder themselves."""


def require_undamaged(folder: Path, provenance: Provenance) -> list[str]:
    """Raise unless a folder holds what its Croissant record describes, byte by byte.

    Args:
        folder: The folder.
        provenance: Its record.

    Returns:
        Names of other files, which no data set is loaded from and nobody has described.

    Raises:
        IntegrityError: A file was altered, is missing or is a link to elsewhere, or one was added among the data.
    """
    require_described(folder)
    described = described_in(folder)
    names = list(_names(folder))
    for name in (*described, RECORD):
        fault = fault_of(folder, folder / name)
        if fault is not None:
            raise IntegrityError(f"{name} {fault}", fix="write the folder again")
    for name in TEXTS:
        if name not in described:
            fact = f"{RECORD} does not describe {name}: an earlier version has written it, or somebody has changed it"
            raise IntegrityError(fact, fix="push the set again")
        if file_sha256(folder / name) != described[name]:
            raise IntegrityError(f"{name} is not the file that {RECORD} describes", fix="write the folder again")
    others = [name for name in names if name not in described and name not in (RECORD, SIGNED)]
    for name in others:
        if name.startswith(("data/", "plots/", "scoring/")):
            raise IntegrityError(f"{name} was added: {RECORD} does not describe it", fix="write the folder again")
    if (folder / RECORD).read_bytes() != croissant(provenance, read_published(folder), folder).encode():
        raise IntegrityError(f"{RECORD} does not say what provenance.json says", fix="write the folder again")
    return [name for name in others if name != _OF_THE_HUB[0] and not name.startswith(_OF_THE_HUB[1])]


def _names(folder: Path) -> Iterator[str]:
    """Names of all files, and of links to folders, in order."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(root) / name).relative_to(folder).as_posix()
