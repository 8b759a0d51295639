"""References on the Hub: published in one commit, and fetched as a verified copy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from hf_safefilter.errors import MissingError, PublishError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.references.files import ROWS, VECTORS
from hf_safefilter.storage.artifacts import MANIFEST
from hf_safefilter.storage.fitted import Fitted
from hf_safefilter.storage.hub_commit import README, Pushed, Repository, commit
from hf_safefilter.storage.hub_states import hub_state
from hf_safefilter.storage.paths import shortened
from hf_safefilter.storage.scratch import scratch_folder

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
    """Commit the files of `index` and a card to a data set repository; older index files are deleted.

    The repository is created if it does not exist. A card that a person wrote is not replaced.

    Args:
        index: The references.
        summary: Facts for the card; they must hold no text of the rows.
        repo_id: Owner and name.
        private: Whether a new repository is private; if True, an existing one must be private too.
        token: Hub token; the one of the login if None.
        sleep: Function that waits some seconds between tries.

    Raises:
        PublishError: The repository is public although `private` was asked for, or the Hub refused the commit; the
            repository is then unchanged.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {name: index.bytes_of(name) for name in index.files}

    def operations(repository: Repository) -> list[CommitOperationAdd | CommitOperationDelete]:
        if private and not repository.private:
            raise PublishError(
                f"{repo_id} is public and would show the texts of the reference rows",
                fix="make it private, push elsewhere, or pass `private=False`",
            )
        text = repository.card()
        own = {CARD: card(summary, repo_id).encode()} if text is None or _MARK in text else {}
        indexes = [name for name in repository.files if "/" not in name and fnmatch(name, "index_*.faiss")]
        stale = [name for name in indexes if name not in files]
        adds = [CommitOperationAdd(name, content) for name, content in (files | own).items()]
        return [*adds, *(CommitOperationDelete(name) for name in sorted(stale))]

    return commit(repo_id, operations, f"References {index.digest[:19]}", private, token, sleep)


@contextmanager
def fetch(repo_id: str, revision: str | None, token: str | None) -> Iterator[Path]:
    """A scratch folder with the reference files of a repository, as plain files.

    Raises:
        MissingError: There is no such repository, it cannot be reached, or it holds no references.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot = Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=list(_OURS), token=token)
        )
    except HFValidationError as error:
        fact = f"{shortened(repo_id)!r} is neither a folder of references nor a Hub id"
        raise MissingError(fact, fix="check the path: a folder holds a manifest.json") from error
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        state = hub_state(error, "a folder")
        fact = f"there is no folder {shortened(repo_id)!r}, and it cannot be had from the Hub"
        raise MissingError(fact, found=state.found, fix=state.fix) from error
    if not (snapshot / MANIFEST).is_file():
        raise MissingError(f"{repo_id} holds no references", found=f"no {MANIFEST}", fix="check the name and revision")
    with scratch_folder() as scratch:
        # The Hub cache holds links to blobs, and an artefact must not hold links: the copies are plain files.
        for pattern in _OURS:
            for path in snapshot.glob(pattern):
                shutil.copyfile(path, scratch / path.name)
        yield scratch


def card(summary: Mapping[str, Any], repo_id: str) -> str:
    """The README of a reference repository: facts and numbers, but no text of the rows."""
    head = {
        "license": shown(summary["license"]),
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
**The unsafe rows are harmful requests with answers.** They are here so that filters recognise such rows.

{facts}

```python
from hf_safefilter import ReferenceIndex

references = ReferenceIndex.from_hub({repo_id!r})
assert references.digest == {summary["digest"]!r}
```
"""


def _plain(value: Any) -> str:
    text = shown(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return " ".join(text.replace("`", "'").split())
