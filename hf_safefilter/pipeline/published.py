"""A published data set as a folder on this machine: a folder that is one, or a snapshot of a repository."""

from __future__ import annotations

from pathlib import Path

from hf_safefilter.errors import MissingError


def open_published(name: str, revision: str | None, scratch: Path) -> Path:
    """The folder of a published data set.

    Args:
        name: A folder, or a repository of the Hub.
        revision: Revision of the repository; None: the newest.
        scratch: An empty folder, for the snapshot.

    Raises:
        MissingError: There is neither.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from hf_safefilter.storage.hub_states import hub_state

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_dir=scratch))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        state = hub_state(error, "a folder")
        fact = f"there is no folder {name!r}, and it cannot be had from the Hub"
        raise MissingError(fact, found=state.found, fix=state.fix) from error
