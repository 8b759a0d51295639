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

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_dir=scratch))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise MissingError(
            f"there is no folder, and no readable repository, {name!r}",
            found=f"{type(error).__name__}: {error}",
            fix="check the name, the login (hf auth login) and the connection",
        ) from error
