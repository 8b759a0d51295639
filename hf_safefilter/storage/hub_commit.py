"""One commit to a data set repository of the Hub: it is made completely, or not at all."""

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
    from collections.abc import Sequence

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

logger = logging.getLogger(__name__)

README = "README.md"

_TRIES = 6
_TEMPORARY = {408, 409, 412, 429, 500, 502, 503, 504}
_LOGIN = "log in with `hf auth login`, with a token that may write to this repository"
_LOCAL = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR, errno.EMFILE}


@dataclass(frozen=True, slots=True)
class Pushed:
    """The commit that was made.

    Attributes:
        url: Address of the commit.
        oid: Id of the commit.
        files: Paths of the files that it changed.
    """

    url: str
    oid: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repository:
    """The current state of a repository.

    Attributes:
        api: Client of the Hub.
        repo_id: Owner and name.
        head: Id of the newest commit.
        private: Whether the repository is private.
        files: Paths of its files.
    """

    api: HfApi
    repo_id: str
    head: str
    private: bool
    files: frozenset[str]

    @classmethod
    def of(cls, api: HfApi, repo_id: str) -> Repository:
        """The current state of a repository, as the Hub reports it."""
        info = api.dataset_info(repo_id)
        files = frozenset(sibling.rfilename for sibling in info.siblings or [])
        return cls(api, repo_id, str(info.sha), bool(info.private), files)

    def card(self) -> str | None:
        """The text of its README.md, or None if it has none."""
        if README not in self.files:
            return None
        path = self.api.hf_hub_download(self.repo_id, README, repo_type="dataset", revision=self.head)
        return Path(path).read_text(encoding="utf-8")


def require_pushable(repo_id: str, token: str | None = None) -> None:
    """Raise if it is plain without a request that nothing can be pushed to a repository.

    Args:
        repo_id: Owner and name.
        token: Hub token; the one of the login if None.

    Raises:
        PublishError: The name is none, nobody is logged in, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in `__all__`

    with _explained(repo_id):
        validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise PublishError(f"{repo_id!r} has no owner", fix=f"use owner/name, e.g. me/{repo_id}")
    if constants.HF_HUB_OFFLINE:
        raise PublishError("HF_HUB_OFFLINE is set", fix="unset it to push")
    if token is None and get_token() is None:
        raise PublishError("nobody is logged in to the Hub on this machine", fix=_LOGIN)


def logged_in_as(repo_id: str, token: str | None = None) -> str:
    """The name under which one is logged in to the Hub, after what `require_pushable` checks.

    Raises:
        PublishError: As for `require_pushable`; or the Hub does not know the token, or cannot be reached.
    """
    from huggingface_hub import HfApi

    require_pushable(repo_id, token)
    try:
        with _explained(repo_id):
            return str(HfApi(token=token).whoami()["name"])
    except _TemporaryFault as fault:
        raise PublishError(
            "the Hub cannot be reached", found=fault.fact, fix="check the connection and HF_ENDPOINT, or try later"
        ) from fault.__cause__


Operations = Callable[[Repository], "Sequence[CommitOperationAdd | CommitOperationDelete]"]


def commit(
    repo_id: str,
    operations: Operations,
    message: str,
    private: bool | None,
    token: str | None,
    sleep: Callable[[float], None],
) -> Pushed:
    """Make one commit on the newest head of a data set repository; after a conflict or a fault the head is read again.

    `Dataset.push_to_hub` does not retry a refused commit (datasets 5.2 looks for an error type that the client of
    huggingface_hub 2 no longer raises), so the commit is retried here.

    Args:
        repo_id: Owner and name.
        operations: Returns what to commit, given the current state of the repository; called at each try.
        message: Title of the commit.
        private: Whether a new repository is private; None if the repository must exist.
        token: Hub token; the one of the login if None.
        sleep: Function that waits some seconds between tries.

    Raises:
        PublishError: The Hub refused, or was not reached in six tries, or a local file cannot be read; the repository
            is unchanged.
    """
    from huggingface_hub import HfApi

    require_pushable(repo_id, token)
    api = HfApi(token=token)
    sent: _Sent | None = None
    for tries in range(1, _TRIES + 1):
        try:
            with _explained(repo_id):
                if private is not None:
                    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
                repository = Repository.of(api, repo_id)
                if (arrived := _arrived(api, repo_id, repository.head, sent)) is not None:
                    return arrived
                changes = operations(repository)
                sent = _Sent(repository.head, message, tuple(change.path_in_repo for change in changes))
                info = api.create_commit(
                    repo_id, changes, commit_message=message, repo_type="dataset", parent_commit=repository.head
                )
        except _TemporaryFault as fault:
            if tries == _TRIES:
                raise PublishError(
                    f"the Hub did not take the commit to {repo_id} in {_TRIES} tries",
                    found=fault.fact,
                    fix="the repository is unchanged; try again later",
                ) from fault.__cause__
            wait = fault.wait if fault.wait is not None else min(60.0, 2.0**tries) * (0.5 + random.random() / 2)
            logger.warning("%s: %s; trying again in %.0f s", repo_id, fault.fact, wait)
            sleep(wait)
        else:
            return Pushed(str(info.commit_url), str(info.oid), sent.files)
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class _Sent:
    """A commit that was sent, and whose answer may have been lost: its parent, title and files."""

    parent: str
    title: str
    files: tuple[str, ...]


def _arrived(api: HfApi, repo_id: str, head: str, sent: _Sent | None) -> Pushed | None:
    """The commit of an earlier try, if the Hub made it and only its answer was lost."""
    if sent is None or head == sent.parent:
        return None
    newest, *older = api.list_repo_commits(repo_id, repo_type="dataset")
    if newest.commit_id != head or newest.title != sent.title or not older or older[0].commit_id != sent.parent:
        return None
    return Pushed(f"{api.endpoint}/datasets/{repo_id}/commit/{head}", head, sent.files)


class _TemporaryFault(Exception):
    """A fault after which another try may succeed: what happened, and how many seconds the Hub asks to wait."""

    def __init__(self, fact: str, wait: float | None) -> None:
        super().__init__(fact)
        self.fact, self.wait = fact, wait


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub into `PublishError`; no message repeats a header, which would show the token."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except SafefilterError:
        raise
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is not a repository id", fix="use owner/name") from error
    except LocalTokenNotFoundError as error:
        raise PublishError("no Hub token was found on this machine", fix=_LOGIN) from error
    except OfflineModeIsEnabled as error:
        raise PublishError("HF_HUB_OFFLINE is set", fix="unset it to push") from error
    except HfHubHTTPError as error:
        raise _refused(repo_id, error.response) from error
    except (OSError, RuntimeError, HTTPError, JSONDecodeError) as error:
        raise _broken(error) from error


def _refused(repo_id: str, response: Any) -> Exception:
    status = response.status_code if response is not None else None
    if status in _TEMPORARY:
        return _TemporaryFault(f"HTTP {status}", _requested_wait(response))
    if status in (401, 403, 404):
        return PublishError(f"the Hub does not let you write to {repo_id} (HTTP {status})", fix=_LOGIN)
    return PublishError(f"the Hub refused the commit to {repo_id} (HTTP {status})", fix="see the error above this one")


def _broken(error: Exception) -> Exception:
    if isinstance(error, OSError) and _is_local(error):
        return PublishError(
            "a file on this machine cannot be read or written",
            found=f"{error.strerror or type(error).__name__}: {error.filename or 'unknown file'}",
            fix="check its permissions and the free space, and push again",
        )
    return _TemporaryFault(f"the connection broke ({type(error).__name__})", None)


def _is_local(error: OSError) -> bool:
    """Whether the disk failed, not the network."""
    return not isinstance(error, (ConnectionError, TimeoutError)) and error.errno in _LOCAL


def _requested_wait(response: Any) -> float | None:
    value = response.headers.get("Retry-After")
    try:
        return min(300.0, max(0.0, float(value)))
    except (TypeError, ValueError):
        return None
