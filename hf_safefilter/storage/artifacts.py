"""Folders whose content is their name: reference sets, subspaces and selectors that a step refers to by digest.

An artefact is a folder with a `manifest.json` (kind, version, facts, and the sha256 of each file). Its digest is the
sha256 of the manifest. `keep` copies one into a per-user store, so that a step, which travels between processes as
plain configuration, can hold the digest alone and any process of the user finds the files again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.storage.atomic import atomic_folder

MANIFEST = "manifest.json"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artefact says of itself.

    Attributes:
        kind: what it is, e.g. ``references``.
        version: of its file format.
        facts: plain JSON values.
        files: file name -> sha256 (hex).
    """

    kind: str
    version: int
    facts: Mapping[str, Any]
    files: Mapping[str, str]

    def to_json(self) -> str:
        """Canonical JSON: the bytes the digest is taken over."""
        body = {"facts": self.facts, "files": self.files, "kind": self.kind, "version": self.version}
        return json.dumps(body, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()


def store_root() -> Path:
    """Where this user's artefacts are kept: ``$HF_SAFEFILTER_CACHE``, else ``safefilter`` in the Hugging Face home."""
    chosen = os.environ.get("HF_SAFEFILTER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "safefilter"


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(folder: Path, kind: str, version: int, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> Manifest:
    """Write an artefact: `fill(folder)` writes its files (flat, plain names), the manifest is added, all at once."""
    with atomic_folder(folder, marker=MANIFEST) as scratch:
        fill(scratch)
        files = {path.name: file_sha256(path) for path in sorted(scratch.iterdir())}
        manifest = Manifest(kind, version, facts, files)
        (scratch / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def read(folder: Path, kind: str, version: int) -> Manifest:
    """Read an artefact's manifest and verify every file it names, before anything else is opened.

    Raises:
        MissingError: no artefact there.
        IntegrityError: another kind or version, a file gone, altered, or named outside the folder.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingError(f"{folder} holds no {kind} artefact", found=f"no {MANIFEST}", fix="check the path")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(body["kind"], body["version"], dict(body["facts"]), dict(body["files"]))
    except (ValueError, KeyError, TypeError) as error:
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
    """Verify an artefact and copy it into the store; returns its digest. Storing it twice is free."""
    manifest = read(folder, kind, version)
    home = _home(manifest.kind, manifest.digest)
    if not (home / MANIFEST).is_file():
        with atomic_folder(home, marker=MANIFEST) as scratch:
            for name in (*manifest.files, MANIFEST):
                shutil.copyfile(Path(folder) / name, scratch / name)
    return manifest.digest


def find(kind: str, digest: str) -> Path:
    """Folder of the stored artefact with this digest.

    Raises:
        MissingError, IntegrityError: not in this store, or no digest at all.
    """
    home = _home(kind, digest)
    if not (home / MANIFEST).is_file():
        raise MissingError(
            f"{kind} {digest[:19]}... is not in the store {store_root()}",
            fix="load it once in this environment (for references: ReferenceIndex.load(folder)), then try again",
        )
    return home


def _home(kind: str, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise IntegrityError(f"{digest!r} is not a digest", fix="expected 'sha256:' and 64 hex digits")
    return store_root() / kind / digest.removeprefix("sha256:")
