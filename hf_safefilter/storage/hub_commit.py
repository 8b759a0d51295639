"""One commit to a data set repository of the Hub: afterwards it is as it was before, or complete."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import PublishError, SafefilterError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

README = "README.md"

_TRIES = 6
_AGAIN = {408, 409, 412, 429, 500, 502, 503, 504}
_LOGIN = "log in with `hf auth login`, with a token that may write there"
_LOCAL = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR, errno.EMFILE}


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


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it stands.

    Attributes:
        api: the client.
        repo_id: owner and name.
        head: its newest commit.
        private: whether it is.
        files: names of the files it holds.
    """

    api: HfApi
    repo_id: str
    head: str
    private: bool
    files: frozenset[str]

    @classmethod
    def of(cls, api: HfApi, repo_id: str) -> Repository:
        """Ask the Hub."""
        info = api.dataset_info(repo_id)
        files = frozenset(sibling.rfilename for sibling in info.siblings or [])
        return cls(api, repo_id, str(info.sha), bool(info.private), files)

    def card(self) -> str | None:
        """The text of its README.md, if there is one."""
        if README not in self.files:
            return None
        path = self.api.hf_hub_download(self.repo_id, README, repo_type="dataset", revision=self.head)
        return Path(path).read_text(encoding="utf-8")


Operations = Callable[[Repository], list[Any]]


def commit(
    repo_id: str,
    operations: Operations,
    message: str,
    private: bool | None,
    token: str | None,
    sleep: Callable[[float], None],
) -> Pushed:
    """One commit on the newest head of a data set repository; after a conflict or a fault the head is read again.

    `Dataset.push_to_hub` does not retry a refused commit (datasets 5.2 looks for an error type that the client of
    huggingface_hub 2 no longer raises), so it is done here.

    Args:
        repo_id: owner and name.
        operations: what to commit, given the repository as it stands; called anew at each try.
        message: title of the commit.
        private: of a repository that is made; None: it must be there.
        token: Hub token; None: the one logged in with.
        sleep: waits between tries.

    Raises:
        PublishError: the Hub refused, or was not reached in six tries, or a local file cannot be read; the repository
            is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    sent: _Sent | None = None
    for tries in range(1, _TRIES + 1):
        try:
            with _explained(repo_id):
                if private is not None:
                    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
                there = Repository.of(api, repo_id)
                if (landed := _landed(api, repo_id, there.head, sent)) is not None:
                    return landed
                changes = operations(there)
                sent = _Sent(there.head, message, tuple(change.path_in_repo for change in changes))
                done = api.create_commit(
                    repo_id, changes, commit_message=message, repo_type="dataset", parent_commit=there.head
                )
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
            return Pushed(str(done.commit_url), str(done.oid), tuple(change.path_in_repo for change in changes))
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

    try:
        yield
    except SafefilterError:
        raise
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is not a repository id", fix="use owner/name") from error
    except LocalTokenNotFoundError as error:
        raise PublishError("there is no Hub token here", fix=_LOGIN) from error
    except OfflineModeIsEnabled as error:
        raise PublishError("HF_HUB_OFFLINE is set", fix="unset it to push") from error
    except HfHubHTTPError as error:
        raise _refused(repo_id, error.response) from error
    except (OSError, RuntimeError, HTTPError, JSONDecodeError) as error:
        raise _broken(error) from error


def _refused(repo_id: str, response: Any) -> Exception:
    status = response.status_code if response is not None else None
    if status in _AGAIN:
        return _Again(f"HTTP {status}", _asked_wait(response))
    if status in (401, 403, 404):
        return PublishError(f"the Hub does not let you write to {repo_id} (HTTP {status})", fix=_LOGIN)
    return PublishError(f"the Hub refused the commit to {repo_id} (HTTP {status})", fix="see the cause")


def _broken(error: Exception) -> Exception:
    if isinstance(error, OSError) and _is_local(error):
        return PublishError(
            "a file on this machine cannot be read or written",
            found=f"{error.strerror or type(error).__name__}: {error.filename or 'unknown file'}",
            fix="see to its permissions, or make room, and push again",
        )
    return _Again(f"the connection broke ({type(error).__name__})", None)


def _is_local(error: OSError) -> bool:
    """Whether it is the disk, and not the network, that failed."""
    return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno in _LOCAL


def _asked_wait(response: Any) -> float | None:
    value = response.headers.get("Retry-After")
    try:
        return min(300.0, max(0.0, float(value)))
    except (TypeError, ValueError):
        return None
