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
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.errors import IntegrityError, MissingError, OptionError

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


def require_replaceable(target: Path, marker: str | None) -> None:
    """Raise unless `atomic_folder` may write `target`: asked before hours of work, and not only after them.

    Raises:
        OptionError: `target` is somebody else's.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OptionError(f"{target} is there and is not a folder", fix="choose another output")
    if target.exists() and any(target.iterdir()) and not (marker and (target / marker).is_file()):
        raise OptionError(f"{target} holds other files, which would be lost", fix="choose another output folder")


@contextmanager
def atomic_folder(target: Path, *, marker: str | None = None) -> Iterator[Path]:
    """A scratch folder that takes the place of `target` when the block ends well, and vanishes when it does not.

    Args:
        target: the folder to write. One that is there already is replaced only if it is empty or holds the file
            `marker`, by which earlier output of the same kind is known: a person's own folder is never replaced.
        marker: name of that file.

    Raises:
        OptionError: `target` is somebody else's.
    """
    target = Path(target)
    require_replaceable(target, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        _swap(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    # A folder cannot be replaced in one call; the old one steps aside first and comes back if the new one cannot land.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "old")
    try:
        scratch.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def atomic_text(target: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


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
