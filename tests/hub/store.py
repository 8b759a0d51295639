"""Repositories in memory: files named by their content, immutable commits, refs that move all at once or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
LFS_PATTERNS = "*.parquet *.safetensors *.bin *.faiss *.arrow *.npy *.npz *.zip *.gz *.tar".split()


class Refusal(Exception):
    """The answer to a request that cannot be met: status, the client-visible code, a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None, **body) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class File:
    """The content of one path at one commit. An LFS file is in git as a pointer, which is what its `oid` names."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return lines.encode()

    @property
    def oid(self) -> str:
        return git_oid(self.pointer if self.lfs else self.content)


@dataclass(frozen=True)
class Commit:
    """A tree and where it came from; the id is computed from both, so equal histories have equal ids."""

    parent: str | None
    files: Mapping[str, File]
    title: str
    message: str
    author: str
    date: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)

    @property
    def id(self) -> str:
        tree = sorted((path, file.oid) for path, file in self.files.items())
        return git_oid(json.dumps([self.parent, tree, self.title, self.message, self.author]).encode(), "commit")


@dataclass(frozen=True)
class Change:
    """One line of a commit: a path gets a file, or (`file` None) the path, or the folder of that name, goes."""

    path: str
    file: File | None = None
    folder: bool = False


class Repo:
    """One repository: its commits, its refs, and the LFS objects uploaded to it, committed or not."""

    def __init__(self, kind: str, name: str, owner: str, private: bool) -> None:
        self.kind, self.name, self.owner, self.private = kind, name, owner, private
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
        self._land("refs/heads/main", None, {".gitattributes": File(attributes.encode())}, "initial commit", "", owner)

    def head(self, branch: str = "main") -> str:
        return self.refs[f"refs/heads/{branch}"]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content of everything at `revision`."""
        return {path: file.content for path, file in self.at(revision).files.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that lead to `revision`, newest first."""
        found = [self.at(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a full ref or a (shortened) commit id."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if _COMMIT.fullmatch(revision):
            for name, commit in self.commits.items():
                if name.startswith(revision):
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self,
        branch: str,
        changes: Iterable[Change],
        title: str,
        message: str = "",
        author: str = "",
        parent: str | None = None,
    ) -> Commit:
        """Apply all `changes` to `branch`, or refuse and leave it as it was.

        Raises:
            Refusal: 412 where `parent` is no longer the head, 404 where a removed path is not there.
        """
        ref = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
        if ref not in self.refs:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.commits[self.refs[ref]]
        if parent is not None and not head.id.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for change in changes:
            _apply(files, change)
        return self._land(ref, head.id, files, title, message, author or self.owner)

    def _land(
        self, ref: str, parent: str | None, files: dict[str, File], title: str, message: str, author: str
    ) -> Commit:
        commit = Commit(parent, MappingProxyType(files), title, message, author)
        self.commits.setdefault(commit.id, commit)
        self.refs[ref] = commit.id
        return commit


def git_oid(content: bytes, kind: str = "blob") -> str:
    """What git would call this content."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def _apply(files: dict[str, File], change: Change) -> None:
    path = change.path.rstrip("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise Refusal(400, f"Invalid path: {change.path!r}")
    if change.file is not None:
        files[path] = change.file
        return
    gone = [known for known in files if (known.startswith(f"{path}/") if change.folder else known == path)]
    if not gone:
        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    for known in gone:
        del files[known]
