"""Rows on disk together with the steps that filled their columns, for later commands.

`save_to_disk` stores columns, but not the steps that filled them. `save_rows` adds them in `safefilter.json`;
`load_rows_with_steps` builds the same steps again, which makes them known to `step.steps_made`. `Trail` is the content
of that file, for code that moves rows without loading a model. A signed record binds rows, columns and trail together:
columns that this machine did not fill are believed only if the user says so, and that is never forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.checks import is_whole
from hf_safefilter.data.saved_folders import open_saved
from hf_safefilter.data.splits import parts_of
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.model.reading_options import HOW
from hf_safefilter.step import Step, fields_of
from hf_safefilter.storage.atomic import atomic_folder
from hf_safefilter.storage.paths import is_there, shortened
from hf_safefilter.storage.recorded_files import record_files, require_recorded

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TRAIL = "safefilter.json"
SCORED = "scored"
"""Folder of the scored rows inside the output of commands that write more than rows."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Rows of an earlier command.

    Attributes:
        rows: The data set.
        steps: The steps that filled its columns.
        name: Hub id, or name of the file or folder, from which the rows came.
        revision: Hub commit or digest of the files.
        trusted: Whether a column was filled on another machine, and is believed because the user says so.
        folder: The folder that the rows are read from; None: they are not from one.
    """

    rows: Dataset | DatasetDict
    steps: list[Step]
    name: str
    revision: str
    trusted: bool = False
    folder: Path | None = None

    def require_unchanged(self) -> None:
        """Raise unless the folder that the rows are read from still holds what was recorded.

        Raises:
            IntegrityError: It was altered in the meantime.
        """
        if self.folder is not None:
            require_recorded(self.folder, TRAIL, trust_vectors=True)  # whose record it is was asked before

    @property
    def mapping(self) -> dict[str, str] | None:
        """Where things stand in a row, and what may go unread, as the rows were embedded (`EmbedLayers.mapping`)."""
        from hf_safefilter.embed import EmbedLayers

        return next((step.mapping for step in self.steps if isinstance(step, EmbedLayers)), None)

    @property
    def own_columns(self) -> list[str]:
        """The columns of the user: those that no step has filled."""
        filled = {name for step in self.steps for name in step.produces()}
        names = dict.fromkeys(name for part in parts_of(self.rows) for name in part.column_names)
        return [name for name in names if name not in filled]


@dataclass(frozen=True, slots=True)
class Trail:
    """The content of `safefilter.json`.

    Attributes:
        name: Hub id, or name of the file or folder, from which the rows came.
        revision: Hub commit or digest of the files.
        steps: `Step.record()` of each step that filled a column.
        shard: Index and number of this shard, and the number of rows of the whole data set; None: it is not a shard.
        trusted: Whether a column was filled on another machine, and is believed because the user says so.
    """

    name: str
    revision: str
    steps: list[dict[str, Any]]
    shard: dict[str, Any] | None = None
    trusted: bool = False

    @classmethod
    def verified(cls, folder: Path, *, trust_vectors: bool = False) -> Trail:
        """The trail of saved rows, after a check that the folder holds what this machine has written.

        Args:
            folder: The folder.
            trust_vectors: Whether the user trusts who has written it, if it was not this machine.

        Raises:
            MissingError: The folder was not written by this package.
            IntegrityError: Anything in it was altered, or it is from elsewhere and not trusted.
        """
        trail = cls.read(folder)
        ours = require_recorded(folder, TRAIL, trust_vectors=trust_vectors)
        if not ours:
            _refuse_endpoints(folder, trail)
        return replace(trail, trusted=trail.trusted or not ours)

    @classmethod
    def read(cls, folder: Path) -> Trail:
        """The trail that lies in a folder, which may be anybody's.

        Raises:
            MissingError: The folder was not written by this package.
            IntegrityError: The trail is damaged.
        """
        path = folder / TRAIL
        if not path.is_file():
            if not is_there(folder):
                raise MissingError(f"there is no folder {shortened(str(folder))}", fix="check the path")
            inside, published = folder / SCORED, (folder / "provenance.json").is_file()
            fix = "run the recipe again, with --scored, and name that folder"
            if not published:
                fix = f"name {inside}" if (inside / TRAIL).is_file() else "write it: hf-safefilter embed --help"
            raise MissingError(
                f"{folder} holds kept rows, and not all with their scores"
                if published
                else f"{folder} was not written by this program",
                found=f"no {TRAIL}",
                fix=fix,
            )
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            shard = _shard_in(body) if "shard" in body else None
            steps = [dict(record) for record in body["steps"]]
            return cls(str(body["name"]), str(body["revision"]), steps, shard, bool(body.get("trusted")))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"{path} is damaged", fix="embed and score the rows again") from error

    def save(self, rows: Dataset | DatasetDict, folder: Path, recheck: Callable[[], None] | None = None) -> None:
        """Write `rows` with `save_to_disk`, this trail and the record of both into one folder, all of it or nothing.

        Args:
            rows: The rows.
            folder: The folder to write.
            recheck: Called when they are written, because until then they are read from their source: raises if that
                was changed meanwhile.
        """
        body: dict[str, Any] = {"name": self.name, "revision": self.revision, "steps": self.steps}
        if self.shard is not None:
            body["shard"] = self.shard
        if self.trusted:
            body["trusted"] = True
        with atomic_folder(folder, marker=TRAIL) as scratch:
            rows.save_to_disk(str(scratch), num_shards=files_for(rows))
            if recheck is not None:
                recheck()
            (scratch / TRAIL).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
            record_files(scratch, TRAIL)


def _shard_in(body: dict[str, Any]) -> dict[str, Any]:
    """What a trail says of its shard.

    Raises:
        TypeError, ValueError, KeyError: It says something else.
    """
    shard = dict(body["shard"])
    if not all(is_whole(number) for number in (shard["index"], shard["count"], *dict(shard["rows"]).values())):
        raise TypeError("these are no numbers of rows")
    return shard


def files_for(rows: Dataset | DatasetDict) -> dict[str, int | None] | int | None:
    """The `num_shards` for `save_to_disk`: its own choice (None), but 1 where there are no rows, to write a file."""
    if isinstance(rows, Mapping):
        return {name: None if len(split) else 1 for name, split in rows.items()}
    return None if len(rows) else 1


def save_rows(
    rows: Dataset | DatasetDict,
    folder: Path,
    steps: Sequence[Step],
    *,
    name: str,
    revision: str,
    trusted: bool = False,
    recheck: Callable[[], None] | None = None,
) -> None:
    """Write `rows` with `save_to_disk` and their trail into one folder, all of it or nothing; see `Trail.save`."""
    Trail(name, revision, [step.record() for step in steps], trusted=trusted).save(rows, folder, recheck)


def save_again(saved: Saved, folder: Path) -> None:
    """Write rows that were read from a folder and have other steps now; nothing, if that folder was altered."""
    save_rows(
        saved.rows,
        folder,
        saved.steps,
        name=saved.name,
        revision=saved.revision,
        trusted=saved.trusted,
        recheck=saved.require_unchanged,
    )


def load_rows_with_steps(folder: Path, *, trust_vectors: bool = False) -> Saved:
    """Rows saved by `save_rows`.

    Args:
        folder: The folder.
        trust_vectors: Whether the user trusts who has written it, if it was not this machine.

    Raises:
        MissingError: The folder was not written by `save_rows`.
        IntegrityError: Anything in it was altered; it is from elsewhere and not trusted; or a step is of another
            version or not known in this one.
    """
    trail = Trail.verified(folder, trust_vectors=trust_vectors)
    steps = [step_from(record) for record in trail.steps]
    return Saved(open_saved(folder), steps, trail.name, trail.revision, trail.trusted, folder)


def _refuse_endpoints(folder: Path, trail: Trail) -> None:
    """Raise if later commands would send rows to a machine that nobody here has named.

    Raises:
        IntegrityError: They would.
    """
    for record in trail.steps:
        if record.get("endpoint"):
            raise IntegrityError(
                f"{folder} was scored elsewhere, by a model at an endpoint, which is asked only where it was named",
                found=str(record["endpoint"]),
                fix="score the rows here, or share the key of the machine that has: HF_SAFEFILTER_KEY",
            )


def step_from(record: dict[str, Any]) -> Step:
    """The step whose `Step.record()` this is.

    Raises:
        IntegrityError: The step is not known here, or was made by another version of its algorithm.
    """
    from hf_safefilter.embed import EmbedLayers

    kind = _kind_of(record.get("step"))
    options = {field.name: record[field.name] for field in fields_of(kind) if field.init and field.name in record}
    try:
        step = EmbedLayers.recorded(options) if kind is EmbedLayers else kind(**options)
    except IntegrityError:  # the record is sound, and what it refers to is not
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"the record of a {kind.__name__} is damaged", found=str(error)[:200], fix="embed and score the rows again"
        ) from error
    now = step.record()
    if {name: value for name, value in now.items() if name in record or name not in HOW} != record:
        raise IntegrityError(
            f"{kind.__name__} gives other values in this version",
            found=json.dumps(now),
            fix="embed and score the rows again",
        )
    return step


def _kind_of(name: Any) -> type[Step]:
    """The class of that name of a step that fills columns; no other is imported, because some bring torch."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.scores import METHODS, method

    methods = {place.partition(":")[2]: name for name, place in METHODS.items()}
    if name == EmbedLayers.__name__:
        return EmbedLayers
    if not isinstance(name, str) or name not in methods:
        known = ", ".join(sorted([EmbedLayers.__name__, *methods]))
        raise IntegrityError(f"{name!r} is not a step of this version", found=known, fix="update hf_safefilter")
    return method(methods[name])
