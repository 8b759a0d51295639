"""Publishing to the Hub in one commit: afterwards the repository is complete, or unchanged."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import IntegrityError, MissingError, PublishError
from hf_safefilter.errors.redaction import everywhere, shown
from hf_safefilter.publish.card import render
from hf_safefilter.publish.croissant import RECORD, croissant, require_described
from hf_safefilter.publish.data_files import DROPPED, Published, read_published
from hf_safefilter.publish.folder import PROVENANCE, write_folder
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.review_facts import RULINGS
from hf_safefilter.publish.scoring import OURS, scoring_files
from hf_safefilter.storage.contained import fault_of
from hf_safefilter.storage.hub_commit import Pushed, Repository, commit, require_pushable
from hf_safefilter.storage.recorded_files import require_recorded
from hf_safefilter.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.step import Step

logger = logging.getLogger(__name__)

_FILES = (DROPPED, RULINGS, RECORD)
_KINDS = (".parquet", ".json", ".png", ".svg", ".safetensors")


def push_filtered(
    ds: Dataset | DatasetDict,
    is_safe: IsSafe,
    repo_id: str,
    *,
    license: str,
    source: str,
    generator_model: str | None = None,
    private: bool = True,
    steps: Sequence[Step] | None = None,
    recipe: Mapping[str, Any] | None = None,
    include_text: bool = False,
    anyway: bool = False,
    trusted_vectors: bool = False,
    name_reviewers: bool = False,
    token: str | None = None,
) -> Pushed:
    """Publish the rows that `is_safe` keeps, with card, provenance, list of dropped rows and plots, in one commit.

    Args:
        ds: The scored rows, before they are filtered.
        is_safe: The decision.
        repo_id: Owner and name of the data set repository; it is created if it does not exist.
        license: Licence of the rows, as the Hub spells it.
        source: Where the rows come from.
        generator_model: The model that wrote the responses, or "people"; None: not known.
        private: Whether a new repository is private; an existing one keeps its setting.
        steps: The steps that filled the columns; None: those constructed in this process (see `gather`).
        recipe: Recipe of the run, for the card.
        include_text: Whether to publish the text of dropped rows too.
        anyway: Whether to publish in spite of a bad verdict on the score; the card says so.
        trusted_vectors: Whether vectors or scores came from elsewhere and are believed; the card says so.
        name_reviewers: Whether the card names the people who decided on rows, and not their number alone.
        token: Hub token; None: the one of the login.

    Raises:
        PublishError: The card would be incomplete, the verdict is bad, or the Hub refused; the repository is then
            unchanged.
    """
    from hf_safefilter.publish.gather import gather

    provenance = gather(ds, is_safe, license=license, source=source, generator_model=generator_model, steps=steps,
                        recipe=recipe, anyway=anyway,
                        trusted_vectors=trusted_vectors, name_reviewers=name_reviewers)  # fmt: skip
    provenance.require_trusted()
    with scratch_folder() as scratch:
        folder = scratch / "out"
        write_folder(folder, ds, is_safe, provenance, include_text=include_text)
        return push_folder(folder, repo_id, private=private, token=token)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    anyway: bool = False,
    trust_vectors: bool = False,
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Publish a folder that `write_folder` has written; splits of the repository that are not in it are kept.

    Args:
        folder: The folder to publish.
        repo_id: Owner and name of the data set repository; it is created if it does not exist.
        private: Whether a new repository is private; an existing one keeps its setting.
        anyway: Whether to publish in spite of a bad verdict on the score; card and provenance say so.
        trust_vectors: Whether the user trusts who has written the folder, if it was not this machine; card and
            provenance say so.
        token: Hub token; None: the one of the login.
        sleep: Function that waits some seconds between tries.

    Raises:
        MissingError: The folder was not written by `write_folder`.
        IntegrityError: A file was altered, added or removed since the folder was written, or the folder is from
            elsewhere and not trusted.
        PublishError: The verdict is bad, or the Hub refused; the repository is unchanged.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    require_pushable(repo_id, token)
    ready = checked_folder(folder, anyway=anyway, trust_vectors=trust_vectors)

    def operations(repository: Repository) -> list[CommitOperationAdd | CommitOperationDelete]:
        # New objects at each try: a used one stores the content of the repository before, and would be left out of the
        # commit if somebody has changed that file since. Data that were uploaded are not sent again.
        adds = [CommitOperationAdd(name, str(path)) for name, path in ready.files.items() if name != RECORD]
        stale = [
            CommitOperationDelete(name)
            for name in sorted(repository.files - set(ready.files))
            if name == RULINGS
            or OURS.fullmatch(name)
            or (
                name.startswith(tuple(f"data/{split}-" for split in ready.published.splits))
                and name.endswith(".parquet")
            )
        ]
        card = repository.card()
        card_text = render(
            ready.provenance,
            _with_other_splits(ready.published, card),
            existing=card,
            text_included=ready.text_included,
            repository=repo_id,
        )
        texts = {PROVENANCE: ready.record, "README.md": card_text.encode()}
        texts[RECORD] = croissant(ready.provenance, ready.published, Path(folder), texts).encode()
        return [*adds, *stale, *(CommitOperationAdd(name, text) for name, text in texts.items())]

    counts = ready.provenance.counts
    return commit(repo_id, operations, f"{counts.kept} of {counts.rows} rows kept", private, token, sleep)


@dataclass(frozen=True, slots=True)
class Ready:
    """A folder that may be published.

    Attributes:
        provenance: What it says of itself.
        record: The content of provenance.json, as it is published.
        published: Its splits and columns.
        files: Path in the repository -> file, of all that is uploaded as it is.
        text_included: Whether it holds the text of dropped rows.
    """

    provenance: Provenance
    record: bytes
    published: Published
    files: Mapping[str, Path]
    text_included: bool

    def summary(self) -> dict[str, str | int]:
        """What somebody looks at who is asked whether to publish it."""
        counts, verdict = self.provenance.counts, self.provenance.judged()
        size = sum(path.stat().st_size for path in self.files.values())
        return {
            "kept": counts.kept,
            "dropped": counts.dropped,
            "text of dropped rows": "included" if self.text_included else "left out",
            "license": self.provenance.source.license,
            "source": self.provenance.source.name,
            "verdict": verdict.sentence if verdict is not None else "none",
            "files": len(self.files) + 2,  # the card and provenance.json
            "size": f"{size / 1e6:.1f} MB",
        }


def checked_folder(folder: str | Path, *, anyway: bool = False, trust_vectors: bool = False) -> Ready:
    """What `push_folder` publishes of a folder, after all checks that need no Hub; raises as it does."""
    folder = Path(folder)
    if not (folder / PROVENANCE).is_file():
        raise MissingError(
            f"{folder} is not a publishable folder",
            found=f"no {PROVENANCE}",
            fix="write it with hf-safefilter run or hf-safefilter card",
        )
    shards = sorted((folder / "data").glob("*.parquet"))
    plots = sorted((folder / "plots").glob("*")) if (folder / "plots").is_dir() else []
    paths = [*shards, *plots, *scoring_files(folder), *(folder / name for name in _FILES if (folder / name).is_file())]
    _require_own_files(folder, [*paths, folder / PROVENANCE])
    ours = require_recorded(folder, PROVENANCE, trust_vectors=trust_vectors)
    require_described(folder)
    text = (folder / PROVENANCE).read_bytes()
    provenance = Provenance.from_json(text).checked()
    if anyway:
        provenance = provenance.insisted()
    if not ours:
        provenance = provenance.model_copy(update={"trusted_vectors": True})
    provenance.require_trusted()
    as_it_is = ours and not anyway and everywhere(json.loads(text), shown) == json.loads(text)
    record = text if as_it_is else provenance.to_json().encode()
    published = read_published(folder)
    text_included = any(name.startswith("row_") and name != "row_id" for name in _columns(folder / DROPPED))
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return Ready(provenance, record, published, names, text_included)


def push_card(
    repo_id: str, provenance: Provenance, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> Pushed:
    """Add card and provenance to a data set that was pushed with `Dataset.push_to_hub`; its data are not changed.

    Args:
        repo_id: Owner and name of the data set repository.
        provenance: The facts to state, from `gather`.
        token: Hub token; None: the one of the login.
        sleep: Function that waits some seconds between tries.

    Raises:
        PublishError: The repository does not exist or holds no data, or the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd

    provenance.checked()

    def operations(repository: Repository) -> list[CommitOperationAdd]:
        card = repository.card()
        if card is None or not any(name.endswith(".parquet") for name in repository.files):
            raise PublishError(f"{repo_id} holds no data yet", fix="push the rows first, with Dataset.push_to_hub")
        text = render(provenance, None, existing=card, repository=repo_id)
        return [
            CommitOperationAdd(PROVENANCE, provenance.to_json().encode()),
            CommitOperationAdd("README.md", text.encode()),
        ]

    return commit(repo_id, operations, "Say how these rows were chosen", None, token, sleep)


def _require_own_files(folder: Path, paths: Sequence[Path]) -> None:
    """Raise unless everything that would be uploaded is a file of the folder itself, of a kind that is written there.

    Raises:
        IntegrityError: Something is a link, elsewhere, or of another kind.
    """
    for path in paths:
        fault = fault_of(folder, path, _KINDS, links=False)
        if fault is not None:
            raise IntegrityError(f"{path.relative_to(folder)} {fault}: it is not pushed", fix="write the folder again")


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_schema(path).names if path.is_file() else []


def _with_other_splits(published: Published, card: str | None) -> Published:
    """The splits of this push, and the other splits that the card of the repository lists."""
    from hf_safefilter.publish.card import splits_in

    others = {name: size for name, size in splits_in(card).items() if name not in published.splits}
    return Published(published.features, others | published.splits)
