"""To the Hub in one commit: the repository is afterwards as it was before, or complete."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import IntegrityError, MissingError, PublishError
from hf_safefilter.publish.card import render
from hf_safefilter.publish.data_files import DROPPED, Published, read_published
from hf_safefilter.publish.folder import PROVENANCE, write_folder
from hf_safefilter.publish.provenance import Provenance

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import HfApi

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)

_TRIES = 6
_AGAIN = {408, 409, 412, 429, 500, 502, 503, 504}
_FILES = (DROPPED, PROVENANCE, "croissant.json")


@dataclass(frozen=True, slots=True)
class Pushed:
    """The commit that was made.

    Attributes:
        url: where to look at it.
        oid: its id.
        files: what it holds.
    """

    url: str
    oid: str
    files: tuple[str, ...]


def push_filtered(
    ds: Dataset | DatasetDict,
    is_safe: IsSafe,
    repo_id: str,
    *,
    license: str,
    source: str,
    private: bool = True,
    steps: Sequence[Step] | None = None,
    recipe: Mapping[str, Any] | None = None,
    include_text: bool = False,
    token: str | None = None,
) -> Pushed:
    """Publish the rows that `is_safe` keeps, with card, provenance, dropped list and plots, in one commit.

    Args:
        ds: the scored rows, before they are filtered.
        is_safe: the decision.
        repo_id: data set repository; made if it is not there.
        license: of the rows, as the Hub spells it.
        source: where they come from.
        private: of a repository that is made; one that is there keeps its setting.
        steps: what filled the columns; default: the steps constructed in this process (see `gather`).
        recipe: of the run, for the card.
        include_text: publish the text of dropped rows too.
        token: Hub token; default: the one logged in with.

    Raises:
        PublishError: the card would be incomplete, or the Hub refused; the repository is then as it was.
    """
    from hf_safefilter.publish.gather import gather

    provenance = gather(ds, is_safe, license=license, source=source, steps=steps, recipe=recipe)
    with tempfile.TemporaryDirectory(prefix="safefilter-push-") as scratch:
        folder = Path(scratch) / "out"
        write_folder(folder, ds, is_safe, provenance, include_text=include_text)
        return push_folder(folder, repo_id, private=private, token=token)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Publish a folder that `write_folder` wrote. Splits of the repository that are not in it stay.

    Raises:
        MissingError: not such a folder.
        IntegrityError: its record or data are damaged.
        PublishError: the Hub refused; the repository is as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    folder = Path(folder)
    if not (folder / PROVENANCE).is_file():
        raise MissingError(f"{folder} is not a publishable folder", found=f"no {PROVENANCE}", fix="write it with: run")
    provenance = Provenance.from_json((folder / PROVENANCE).read_text(encoding="utf-8")).checked()
    published = read_published(folder)
    shards = sorted((folder / "data").glob("*.parquet"))
    plots = sorted((folder / "plots").glob("*")) if (folder / "plots").is_dir() else []
    paths = [*shards, *plots, *(folder / name for name in _FILES if (folder / name).is_file())]
    text_included = any(name.startswith("row_") and name != "row_id" for name in _columns(folder / DROPPED))
    names = {path.relative_to(folder).as_posix(): path for path in paths}

    def operations(there: set[str], card: str | None) -> list[Any]:
        # New objects at each try: a used one remembers what the repository held before, and would be left out of the
        # commit if another writer has changed that file since. Data that were uploaded are not sent again.
        adds = [CommitOperationAdd(name, str(path)) for name, path in names.items()]
        stale = [
            CommitOperationDelete(name)
            for name in sorted(there - set(names))
            if name.startswith(tuple(f"data/{split}-" for split in published.splits)) and name.endswith(".parquet")
        ]
        text = render(provenance, _with_other_splits(published, card), existing=card, text_included=text_included)
        text = text.replace("REPOSITORY", repo_id)
        return [*adds, *stale, CommitOperationAdd("README.md", text.encode())]

    counts = provenance.counts
    return _commit(repo_id, operations, f"{counts.kept} of {counts.rows} rows kept", private, token, sleep)


def push_card(
    repo_id: str, provenance: Provenance, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> Pushed:
    """Add card and provenance to a data set that was pushed with `Dataset.push_to_hub`; its data are left alone.

    Raises:
        PublishError: no such repository, one without data, or the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd

    provenance.checked()

    def operations(there: set[str], card: str | None) -> list[Any]:
        if card is None or not any(name.endswith(".parquet") for name in there):
            raise PublishError(f"{repo_id} holds no data yet", fix="push the rows first: clean.push_to_hub(...)")
        text = render(provenance, None, existing=card).replace("REPOSITORY", repo_id)
        return [
            CommitOperationAdd(PROVENANCE, provenance.to_json().encode()),
            CommitOperationAdd("README.md", text.encode()),
        ]

    return _commit(repo_id, operations, "Say how these rows were chosen", None, token, sleep)


Operations = Callable[[set[str], str | None], list[Any]]


def _commit(
    repo_id: str,
    operations: Operations,
    message: str,
    private: bool | None,
    token: str | None,
    sleep: Callable[[float], None],
) -> Pushed:
    """One commit on the newest head; after a conflict or a fault the head and its card are read again.

    `Dataset.push_to_hub` does not retry a refused commit (datasets 5.2 looks for an error type that the client of
    huggingface_hub 2 no longer raises), so it is done here.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    sent: _Sent | None = None
    for tries in range(1, _TRIES + 1):
        try:
            with _explained(repo_id):
                if private is not None:
                    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
                head, there, card = _head(api, repo_id)
                if (landed := _landed(api, repo_id, head, sent)) is not None:
                    return landed
                made = operations(there, card)
                sent = _Sent(head, message, tuple(one.path_in_repo for one in made))
                done = api.create_commit(repo_id, made, commit_message=message, repo_type="dataset", parent_commit=head)
        except _Again as fault:
            if tries == _TRIES:
                raise PublishError(
                    f"the Hub did not take the commit to {repo_id} in {_TRIES} tries",
                    found=fault.what,
                    fix="the repository is as it was; try again later",
                ) from fault.__cause__
            wait = fault.wait if fault.wait is not None else min(60.0, 2.0**tries) * (0.5 + random.random() / 2)
            logger.warning("%s: %s; trying again in %.0f s", repo_id, fault.what, wait)
            sleep(wait)
        else:
            return Pushed(str(done.commit_url), str(done.oid), sent.files)
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class _Sent:
    """A commit whose answer may have been lost on the way: its parent, title and files."""

    parent: str
    title: str
    files: tuple[str, ...]


def _landed(api: HfApi, repo_id: str, head: str, sent: _Sent | None) -> Pushed | None:
    """The commit that an earlier try made after all, when only its answer was lost."""
    if sent is None or head == sent.parent:
        return None
    newest, *before = api.list_repo_commits(repo_id, repo_type="dataset")
    if newest.commit_id != head or newest.title != sent.title or not before or before[0].commit_id != sent.parent:
        return None
    return Pushed(f"{api.endpoint}/datasets/{repo_id}/commit/{head}", head, sent.files)


def _head(api: HfApi, repo_id: str) -> tuple[str, set[str], str | None]:
    """Commit, files and card of the repository as it stands."""
    info = api.dataset_info(repo_id)
    there = {one.rfilename for one in info.siblings or []}
    card = None
    if "README.md" in there:
        path = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=info.sha)
        card = Path(path).read_text(encoding="utf-8")
    return str(info.sha), there, card


class _Again(Exception):
    """A fault that may go away: what it was, and how long the Hub asks to wait."""

    def __init__(self, what: str, wait: float | None) -> None:
        super().__init__(what)
        self.what, self.wait = what, wait


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """The Hub's errors as ours; none of them repeats a header, where the token is."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    login = "log in with `hf auth login`, with a token that may write there"
    try:
        yield
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is not a repository id", fix="use owner/name") from error
    except LocalTokenNotFoundError as error:
        raise PublishError("there is no Hub token here", fix=login) from error
    except OfflineModeIsEnabled as error:
        raise PublishError("HF_HUB_OFFLINE is set", fix="unset it to push") from error
    except HfHubHTTPError as error:
        response = error.response
        status = response.status_code if response is not None else None
        if status in _AGAIN:
            raise _Again(f"HTTP {status}", _asked_wait(response)) from error
        if status in (401, 403, 404):
            raise PublishError(f"the Hub does not let you write to {repo_id} (HTTP {status})", fix=login) from error
        raise PublishError(f"the Hub refused the commit to {repo_id} (HTTP {status})", fix="see the cause") from error
    except (PublishError, IntegrityError):
        raise
    except (OSError, RuntimeError, HTTPError, JSONDecodeError) as error:
        raise _Again(f"the connection broke ({type(error).__name__})", None) from error


def _asked_wait(response: Any) -> float | None:
    value = response.headers.get("Retry-After")
    try:
        return min(300.0, max(0.0, float(value)))
    except (TypeError, ValueError):
        return None


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_schema(path).names if path.is_file() else []


def _with_other_splits(published: Published, card: str | None) -> Published:
    """The splits of this push, and those that stay in the repository, as its card counts them."""
    from hf_safefilter.publish.card import splits_in

    others = {name: size for name, size in splits_in(card).items() if name not in published.splits}
    return Published(published.features, others | published.splits)
