"""Folders named by a digest of their content: reference sets, subspaces and selectors that a step refers to.

An artefact is a folder with a `manifest.json` (kind, version, facts, and the sha256 of each file). Its digest is the
sha256 of the manifest. `keep` copies one into a per-user store, so that a step, which is sent between processes as
plain configuration, needs to hold only the digest, and every process of the user can find the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.storage.atomic import atomic_folder

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of an artefact.

    Attributes:
        kind: Kind of artefact, e.g. ``references``.
        version: Version of its file format.
        facts: Plain JSON values.
        files: File name -> sha256 (hex).
    """

    kind: str
    version: int
    facts: Mapping[str, Any]
    files: Mapping[str, str]

    def to_json(self) -> str:
        """Canonical JSON: the text whose bytes are hashed for the digest."""
        body = {"facts": self.facts, "files": self.files, "kind": self.kind, "version": self.version}
        return json.dumps(body, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()


def store_root() -> Path:
    """Folder of this user's artefacts: ``$HF_SAFEFILTER_CACHE``, else ``safefilter`` in the Hugging Face home."""
    folder = os.environ.get("HF_SAFEFILTER_CACHE")
    if folder:
        return Path(folder).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "safefilter"


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(folder: Path, kind: str, version: int, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> Manifest:
    """Write an artefact in one step: `fill(folder)` writes its files (no subfolders), then the manifest is added."""
    with atomic_folder(folder, marker=MANIFEST) as scratch:
        fill(scratch)
        files = {path.name: file_sha256(path) for path in sorted(scratch.iterdir())}
        manifest = Manifest(kind, version, facts, files)
        (scratch / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def read(folder: Path, kind: str, version: int) -> Manifest:
    """Read an artefact's manifest and verify every file it names, before anything else is opened.

    Raises:
        MissingError: `folder` holds no artefact.
        IntegrityError: It is of another kind or version, or a file is missing, altered, or named outside the folder.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingError(f"{folder} holds no {kind} artefact", found=f"no {MANIFEST}", fix="check the path")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(body["kind"], body["version"], dict(body["facts"]), dict(body["files"]))
        if not all(isinstance(name, str) for name in manifest.files):
            raise TypeError("a file without a name")
        _ = manifest.digest  # which no number that is not one gets through, and no half of a character
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise IntegrityError(f"{path} is not a manifest", fix="write the artefact again") from error
    if (manifest.kind, manifest.version) != (kind, version):
        raise IntegrityError(
            f"{folder} is not a {kind} artefact of version {version}",
            found=f"{manifest.kind} of version {manifest.version}",
            fix="check the path, or build it again with this version",
        )
    for name, recorded in manifest.files.items():
        if not _FILE.fullmatch(name):
            raise IntegrityError(f"{path} names a file outside its folder: {name!r}", fix="do not use this artefact")
        file = folder / name
        if not file.is_file() or file.is_symlink() or file_sha256(file) != recorded:
            raise IntegrityError(f"{file} is not the file that was recorded", fix="fetch or build the artefact again")
    return manifest


def keep(folder: Path, kind: str, version: int) -> str:
    """Verify an artefact, copy it into the store unless it is there already, whole, and return its digest."""
    manifest = read(folder, kind, version)
    stored = _stored_folder(manifest.kind, manifest.digest)
    if not is_kept(manifest.digest, kind, version):
        _clear(stored)
        with atomic_folder(stored, marker=MANIFEST) as scratch:
            for name in (*manifest.files, MANIFEST):
                shutil.copyfile(Path(folder) / name, scratch / name)
            if read(scratch, kind, version).digest != manifest.digest:
                raise IntegrityError(
                    f"{folder} was changed while it was read", fix="try again when nothing writes to it"
                )
    return manifest.digest


def _clear(stored: Path) -> None:
    """Remove what stands in the place of an artefact, and is none: nothing else belongs under such a name."""
    if stored.is_symlink() or stored.is_file():
        stored.unlink()
    elif stored.is_dir() and not (stored / MANIFEST).is_file():
        shutil.rmtree(stored)


def is_kept(digest: str, kind: str, version: int) -> bool:
    """Whether the store has the artefact, and it is whole: a damaged one is to be had again, and says nothing.

    Raises:
        IntegrityError: `digest` is not a digest.
    """
    stored = _stored_folder(kind, digest)
    try:
        return read(stored, kind, version).digest == digest
    except MissingError:
        return False
    except IntegrityError as error:
        logger.warning("%s: this copy is not used", error.fact)
        return False


def find(kind: str, digest: str) -> Path:
    """Folder of the stored artefact with this digest.

    Raises:
        MissingError: It is not in the store.
        IntegrityError: `digest` is not a digest.
    """
    stored = _stored_folder(kind, digest)
    if not (stored / MANIFEST).is_file():
        raise MissingError(
            f"{kind} {digest[:19]}... is not in the store {store_root()}",
            fix="load it once on this machine (for references: ReferenceIndex.load(folder)), then try again",
        )
    return stored


def _stored_folder(kind: str, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise IntegrityError(f"{digest!r} is not a digest", fix="expected 'sha256:' and 64 hex digits")
    return store_root() / kind / digest.removeprefix("sha256:")
