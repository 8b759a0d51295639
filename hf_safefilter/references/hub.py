"""References on the Hub: one commit out, a verified copy in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_safefilter.errors import MissingError, PublishError
from hf_safefilter.references.files import ROWS, VECTORS
from hf_safefilter.storage.artifacts import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

CARD = "README.md"
_OURS = (MANIFEST, VECTORS, ROWS, "index_*.faiss")
_MARK = "<!-- written by hf_safefilter -->"


def push(index: Any, repo_id: str, *, private: bool, token: str | None) -> CommitInfo:
    """Commit the files of `index` and a card to a data set repository, made if need be; older index files go.

    A card that a person wrote is left alone.

    Raises:
        PublishError: the repository is public although `private` was asked for, or the Hub refused the commit, for
            example because another one came first; the repository is then as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    info = api.repo_info(repo_id, repo_type="dataset")
    if private and not info.private:
        raise PublishError(
            f"{repo_id} is public and would show the texts of the reference rows",
            fix="make it private, push elsewhere, or pass private=False",
        )
    there = set(api.list_repo_files(repo_id, repo_type="dataset", revision=info.sha))
    files = {name: index.bytes_of(name) for name in index.files}
    if CARD not in there or _is_ours(api, repo_id, info.sha):
        files[CARD] = card(index, repo_id).encode()
    stale = [name for name in there if Path(name).match("index_*.faiss") and name not in files and "/" not in name]
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        return api.create_commit(
            repo_id,
            operations=[*additions, *(CommitOperationDelete(name) for name in sorted(stale))],
            commit_message=f"References {index.digest[:19]}",
            repo_type="dataset",
            parent_commit=info.sha,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise PublishError(f"the Hub refused the commit to {repo_id}", found=f"{status}", fix="push again") from error


@contextmanager
def fetch(repo_id: str, revision: str | None, token: str | None) -> Iterator[Path]:
    """A scratch folder with the reference files of a repository, as plain files.

    Raises:
        MissingError: the repository holds no references.
    """
    from huggingface_hub import snapshot_download

    snapshot = Path(
        snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=list(_OURS), token=token)
    )
    if not (snapshot / MANIFEST).is_file():
        raise MissingError(f"{repo_id} holds no references", found=f"no {MANIFEST}", fix="check the name and revision")
    with tempfile.TemporaryDirectory() as scratch:
        # The cache holds links to blobs, which an artefact must not: a copy follows them.
        for pattern in _OURS:
            for path in snapshot.glob(pattern):
                shutil.copyfile(path, Path(scratch, path.name))
        yield Path(scratch)


def card(index: Any, repo_id: str) -> str:
    """The README of a reference repository: what it is, in numbers; none of its texts."""
    head = {
        "license": index.license,
        "pretty_name": "Reference rows for fine-tuning data filters",
        "configs": [{"config_name": "default", "data_files": ROWS}],
        "tags": ["hf_safefilter", "references"],
    }
    said = index.summary()
    facts = "\n".join(f"- {name}: `{_plain(value)}`" for name, value in said.items())
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
{_MARK}

# References

Unsafe and safe rows that a fine-tuning set is compared with, and their hidden states in one model.
**The unsafe rows are harmful requests with answers.** They are here to be recognised, not to be learned.

{facts}

```python
from hf_safefilter import ReferenceIndex

references = ReferenceIndex.from_hub({repo_id!r})
assert references.digest == {index.digest!r}
```
"""


def _plain(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.replace("`", "'").split())


def _is_ours(api: Any, repo_id: str, revision: str) -> bool:
    path = api.hf_hub_download(repo_id, CARD, repo_type="dataset", revision=revision)
    return _MARK in Path(path).read_text(encoding="utf-8")
