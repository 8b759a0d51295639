"""References on the Hub: one commit out, a verified copy in."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from hf_safefilter.errors import MissingError, PublishError
from hf_safefilter.references.files import ROWS, VECTORS
from hf_safefilter.storage.artifacts import MANIFEST
from hf_safefilter.storage.fitted import Fitted
from hf_safefilter.storage.hub_commit import README, Pushed, Repository, commit

CARD = README
_OURS = (MANIFEST, VECTORS, ROWS, "index_*.faiss")
_MARK = "<!-- written by hf_safefilter -->"


def push(
    index: Fitted,
    summary: Mapping[str, Any],
    repo_id: str,
    *,
    private: bool,
    token: str | None,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Commit the files of `index` and a card to a data set repository, made if need be; older index files go.

    A card that a person wrote is left alone.

    Args:
        index: the references.
        summary: what the card says of them; no text of theirs.
        repo_id: owner and name.
        private: of a repository that is made; one that is there must be private too.
        token: Hub token; None: the one logged in with.
        sleep: waits between tries.

    Raises:
        PublishError: the repository is public although `private` was asked for, or the Hub refused the commit; the
            repository is then as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {name: index.bytes_of(name) for name in index.files}

    def operations(there: Repository) -> list[Any]:
        if private and not there.private:
            raise PublishError(
                f"{repo_id} is public and would show the texts of the reference rows",
                fix="make it private, push elsewhere, or pass `private=False`",
            )
        text = there.card()
        own = {CARD: card(summary, repo_id).encode()} if text is None or _MARK in text else {}
        stale = [
            name for name in there.files if "/" not in name and name not in files and fnmatch(name, "index_*.faiss")
        ]
        adds = [CommitOperationAdd(name, content) for name, content in (files | own).items()]
        return [*adds, *(CommitOperationDelete(name) for name in sorted(stale))]

    return commit(repo_id, operations, f"References {index.digest[:19]}", private, token, sleep)


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


def card(summary: Mapping[str, Any], repo_id: str) -> str:
    """The README of a reference repository: what it is, in numbers; none of its texts."""
    head = {
        "license": summary["license"],
        "pretty_name": "Reference rows for fine-tuning data filters",
        "configs": [{"config_name": "default", "data_files": ROWS}],
        "tags": ["hf_safefilter", "references"],
    }
    facts = "\n".join(f"- {name}: `{_plain(value)}`" for name, value in summary.items())
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
assert references.digest == {summary["digest"]!r}
```
"""


def _plain(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.replace("`", "'").split())
