"""Loading rows from a Hub id, a file, a folder of files, or a `save_to_disk` folder.

A local source is hashed before it is read and again afterwards, so that its digest is that of the rows. Rows that stay
in its files, of a `save_to_disk` folder or a stream, are held to the digest once more when the work on them is done.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hf_safefilter.checks import suggesting
from hf_safefilter.data.card_files import require_relative, sets_in
from hf_safefilter.data.local_files import KINDS, kind_of, root_cause, rows_in
from hf_safefilter.data.media import undecoded
from hf_safefilter.data.saved_folders import is_saved, open_saved
from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.hub_states import hub_state
from hf_safefilter.storage.paths import is_there, shortened

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyRows: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows and where they came from.

    Attributes:
        rows: The data set, or a dict of splits; iterable if it is streamed.
        name: Hub id, or name of the file or folder without its path.
        revision: Hub commit, or ``sha256:...`` of the files.
        mapped: The local file or folder that the rows are still read from; None if they were copied, or are on the Hub.
    """

    rows: AnyRows
    name: str
    revision: str
    mapped: Path | None = None

    def require_unchanged(self) -> None:
        """Raise unless the files that the rows are read from are still those that were hashed.

        Raises:
            IntegrityError: They were altered in the meantime.
        """
        if self.mapped is not None and (now := _content_digest(self.mapped)) != self.revision:
            raise IntegrityError(
                f"{self.name} was changed while it was read",
                found=f"{now} instead of {self.revision}",
                fix="run the same command again when nothing writes to it",
            )


def load_rows(
    source: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Loaded:
    """Load rows; a single split is returned as a plain data set.

    Args:
        source: Hub id, ``.jsonl``/``.json``/``.csv``/``.parquet``/``.arrow`` file (compressed or not), folder of such
            files, or folder written by `save_to_disk`. A local name is that of a file, never a pattern.
        config: Name of the configuration of a Hub data set.
        split: Load only this split.
        revision: Branch, tag or commit of a Hub data set; it is resolved to a commit.
        streaming: Read rows as they are needed; a `save_to_disk` folder is memory-mapped in any case.

    Raises:
        MissingError: There is no such source, or it has no such split.
        DataError: A file cannot be read as rows, or holds none.
        IntegrityError: A file was changed while it was read.
    """
    path = Path(source)
    if is_there(path):
        path = path.expanduser()
        if revision is not None or config is not None:
            raise OptionError(f"{path.name} is local, so it has no revision or config", fix="leave them out")
        name, pinned = path.resolve().name, _content_digest(path)
        rows = _local(path, split, streaming)
        loaded = Loaded(undecoded(_unwrap(rows, name)), name, pinned, path)
        loaded.require_unchanged()
        return loaded if streaming or is_saved(path) else replace(loaded, mapped=None)
    if not _HUB_ID.fullmatch(str(source)) or kind_of(path) is not None:
        raise MissingError(f"there is no file, folder or Hub data set {shortened(str(source))!r}", fix="check the path")
    rows, pinned = _hub(str(source), config, split, revision, streaming)
    return Loaded(undecoded(_unwrap(rows, str(source))), str(source), pinned)


def _local(path: Path, split: str | None, streaming: bool) -> AnyRows:
    from datasets import DatasetDict

    if is_saved(path):
        rows = open_saved(path)
        if split is not None:
            if not isinstance(rows, DatasetDict):
                raise OptionError(f"{path.name} has no splits", fix=f"leave out `split='{split}'`")
            rows = _take(rows, split)
        return rows.to_iterable_dataset() if streaming and not isinstance(rows, DatasetDict) else rows
    if path.is_file() and kind_of(path) is None:
        raise DataError(f"{path.name} is not a file of rows", fix=f"expected one of {', '.join(KINDS)}")
    return rows_in(path, split, streaming)


def _hub(
    source: str, config: str | None, split: str | None, revision: str | None, streaming: bool
) -> tuple[AnyRows, str]:
    from datasets import load_dataset
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        pinned = str(HfApi().dataset_info(source, revision=revision).sha)
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        state = hub_state(error, "a file or folder")
        fact = f"there is no file or folder {source!r}, and it cannot be had from the Hub"
        raise MissingError(fact, found=state.found, fix=state.fix) from error
    _require_own_files(source, pinned)
    try:
        return load_dataset(source, config, split=split, revision=pinned, streaming=streaming), pinned
    except (ValueError, OSError, HTTPError) as error:
        raise DataError(f"{source} cannot be loaded", found=root_cause(error), fix="check config and split") from error


def _require_own_files(source: str, revision: str) -> None:
    """Raise if the card of a data set on the Hub names files that are not in its repository."""
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        card = hf_hub_download(source, "README.md", repo_type="dataset", revision=revision)
    except EntryNotFoundError:
        return
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise MissingError(
            f"the card of {source!r} could not be read from the Hub", found=type(error).__name__, fix="try again"
        ) from error
    for splits in sets_in(Path(card)).values():
        for pattern in (pattern for patterns in splits.values() for pattern in patterns):
            require_relative(pattern, source)


def _take(rows: DatasetDict, split: str) -> Dataset:
    if split not in rows:
        raise MissingError(
            f"there is no split {split!r}", found=", ".join(rows), fix=suggesting(split, rows, "use one of these")
        )
    return rows[split]


def _unwrap(rows: AnyRows, name: str) -> AnyRows:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    if isinstance(rows, (DatasetDict, IterableDatasetDict)) and len(rows) == 1:
        rows = next(iter(rows.values()))
    parts = rows.values() if isinstance(rows, DatasetDict) else [rows]
    if all(isinstance(part, Dataset) and not len(part) for part in parts):
        raise DataError(f"{name} holds no rows", fix="check how it was written")
    return rows


def _content_digest(path: Path) -> str:
    """sha256 over the names and contents of the files; the folder's own path is not part of it."""
    if path.is_file():
        return f"sha256:{file_sha256(path)}"
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
