"""Artefacts in this user's store, opened by digest: what a score is fitted to, or compares rows with.

A step holds only the digest; `of` opens each artefact once a process. A file is hashed again when it is read, and the
bytes that were hashed are the ones that are parsed: they cannot change in between, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.storage import artifacts
from hf_safefilter.storage.atomic import atomic_folder
from hf_safefilter.storage.scratch import scratch_folder


class Fitted:
    """Base of artefacts: a subclass states its `KIND` and `VERSION` and reads its own files with `bytes_of`."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def __init__(self, digest: str) -> None:
        self._folder = artifacts.find(self.KIND, digest)
        self._manifest = artifacts.read(self._folder, self.KIND, self.VERSION)
        if self._manifest.digest != digest:
            raise IntegrityError(
                f"{self._folder} does not hold the {self.KIND} artefact that it is named after",
                found=self._manifest.digest,
                fix="load or build the artefact again",
            )

    @classmethod
    def of(cls, artefact: Self | str) -> Self:
        """The artefact with this digest, opened once a process; an open artefact is returned as it is.

        Raises:
            MissingError: It is not in the store.
            IntegrityError: It was altered, or `artefact` is not a digest.
        """
        if isinstance(artefact, cls):
            return artefact
        return _open(cls, artefact)  # type: ignore[arg-type]  # mypy takes `__hash__` of instances for that of the class

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Verify a saved artefact, copy it into this user's store, and open it.

        Raises:
            MissingError: `folder` holds no such artefact.
            IntegrityError: Its files are not those that were recorded.
        """
        return cls.of(artifacts.keep(Path(folder), cls.KIND, cls.VERSION))

    @classmethod
    def make(cls, facts: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Write `files` and plain JSON `facts` as an artefact into the store, and open it."""

        def fill(folder: Path) -> None:
            for name, content in files.items():
                (folder / name).write_bytes(content)

        with scratch_folder() as scratch:
            artifacts.write(scratch / "artefact", cls.KIND, cls.VERSION, facts, fill)
            return cls.load(scratch / "artefact")

    def save(self, folder: str | Path) -> Path:
        """Write the artefact into `folder`, which must be new, empty, or an artefact of the same kind.

        Raises:
            OptionError: The folder holds something else.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not self._is_same_kind(target))):
            raise OptionError(f"{target} already holds something else", fix="choose a new folder")
        with atomic_folder(target, marker=artifacts.MANIFEST) as scratch:
            for name in self.files:
                shutil.copyfile(self._folder / name, scratch / name)
        artifacts.read(target, self.KIND, self.VERSION)
        return target

    def _is_same_kind(self, folder: Path) -> bool:
        try:
            recorded = artifacts.read(folder, self.KIND, self.VERSION)
        except (LookupError, ValueError):
            return False
        return {path.name for path in folder.iterdir()} == {*recorded.files, artifacts.MANIFEST}

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits: the name under which steps refer to it."""
        return self._manifest.digest

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts about the artefact, as plain JSON values."""
        return self._manifest.facts

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files, the manifest last."""
        return (*self._manifest.files, artifacts.MANIFEST)

    def bytes_of(self, name: str) -> bytes:
        """Content of a file, hashed as it is read.

        Raises:
            IntegrityError: It is not a file of this artefact, or was altered since it was recorded.
        """
        if name == artifacts.MANIFEST:
            return self._manifest.to_json().encode()
        content = (self._folder / name).read_bytes() if name in self._manifest.files else b""
        if hashlib.sha256(content).hexdigest() != self._manifest.files.get(name):
            raise IntegrityError(
                f"{self._folder / name} is not the file that was recorded", fix="load or build the artefact again"
            )
        return content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.digest,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.digest[:19]}...)"


@lru_cache(maxsize=32)
def _open(kind: type[Fitted], digest: str) -> Any:
    return kind(digest)
