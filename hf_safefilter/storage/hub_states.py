"""Why something cannot be had from the Hub, in words: offline, out of reach, not there, gated, or nobody logged in."""

from __future__ import annotations

from typing import NamedTuple

_LOGGED_OUT = "nobody is logged in on this machine"


class HubState(NamedTuple):
    """What stands between a user and a repository: the `found` and the `fix` of an error."""

    found: str
    fix: str


def hub_state(error: BaseException, local: str) -> HubState:
    """The state of the Hub that an error of its client tells.

    Args:
        error: What the client of the Hub, or the library that called it, has raised.
        local: What may be named instead, e.g. "a file or folder".
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return HubState("this is no name of a repository", f"check the path of {local}; a repository is owner/name")
    if isinstance(error, GatedRepoError):
        return HubState("the repository is gated", "accept its terms on its page, and log in: hf auth login")
    if isinstance(error, RepositoryNotFoundError):
        login = _LOGGED_OUT if get_token() is None else "the login does not show it"
        return HubState(f"the Hub has none, or hides it: {login}", "check the name; for a private one: hf auth login")
    if isinstance(error, RevisionNotFoundError):
        return HubState("the repository has no such revision", "name a branch, tag or commit of it")
    if constants.HF_HUB_OFFLINE:
        return HubState(
            "HF_HUB_OFFLINE is set, and there is no copy on this machine", f"unset it, or check the path of {local}"
        )
    return HubState(
        f"the Hub cannot be reached ({_root(error)})",
        f"check the path, if it is {local}; else the connection and HF_ENDPOINT",
    )


def _root(error: BaseException) -> str:
    """The kind of the error that began it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return type(error).__name__
