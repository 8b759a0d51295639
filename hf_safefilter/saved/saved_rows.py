"""How the columns of a saved data set came to be: the steps, written beside it, so that a later command knows.

`save_to_disk` keeps columns but not the steps that filled them. `save_rows` adds `safefilter.json`;
`load_rows_with_steps` builds the same steps again, which makes them known to `step.steps_made`. `Trail` is that file
as it stands, for whoever moves rows about without a model at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.step import Step
from hf_safefilter.storage.atomic import atomic_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TRAIL = "safefilter.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """Rows of an earlier command: the data set, the steps that filled its columns, and where its rows came from."""

    rows: Dataset | DatasetDict
    steps: list[Step]
    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class Trail:
    """What `safefilter.json` says.

    Attributes:
        name, revision: where the rows came from.
        steps: `Step.record()` of each step that filled a column.
        shard: which part of the rows this is, for `shards`; None: all of them.
    """

    name: str
    revision: str
    steps: list[dict[str, Any]]
    shard: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Trail:
        """The trail of saved rows.

        Raises:
            MissingError: not such a folder.
            IntegrityError: a damaged trail.
        """
        path = folder / TRAIL
        if not path.is_file():
            raise MissingError(
                f"{folder} was not written by this program",
                found=f"no {TRAIL}",
                fix="make it: hf-safefilter embed --help",
            )
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            shard = dict(said["shard"]) if "shard" in said else None
            return cls(str(said["name"]), str(said["revision"]), [dict(one) for one in said["steps"]], shard)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path} is damaged", fix="embed and score the rows again") from error

    def save(self, rows: Dataset | DatasetDict, folder: Path) -> None:
        """Write `rows` with `save_to_disk` and this trail beside them, all at once or not at all."""
        said = {"name": self.name, "revision": self.revision, "steps": self.steps}
        if self.shard is not None:
            said["shard"] = self.shard
        with atomic_folder(folder, marker=TRAIL) as scratch:
            rows.save_to_disk(str(scratch), num_shards=files_for(rows))
            (scratch / TRAIL).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def files_for(rows: Dataset | DatasetDict) -> Any:
    """How many files to write: as `datasets` likes, but one where there are no rows, or nothing could be loaded."""
    if isinstance(rows, Mapping):
        return {name: None if len(split) else 1 for name, split in rows.items()}
    return None if len(rows) else 1


def save_rows(rows: Dataset | DatasetDict, folder: Path, steps: Sequence[Step], *, name: str, revision: str) -> None:
    """Write `rows` with `save_to_disk` and their trail beside them, all at once or not at all."""
    Trail(name, revision, [step.record() for step in steps]).save(rows, folder)


def load_rows_with_steps(folder: Path) -> Saved:
    """Rows saved by `save_rows`.

    Raises:
        MissingError: not such a folder.
        IntegrityError: a damaged trail, a step of another version, or one this version does not know.
    """
    from datasets import load_from_disk

    trail = Trail.read(folder)
    steps = [step_from(record) for record in trail.steps]
    return Saved(load_from_disk(str(folder)), steps, trail.name, trail.revision)


def step_from(record: dict[str, Any]) -> Step:
    """The step whose `Step.record()` this is.

    Raises:
        IntegrityError: unknown here, or made by another version of its algorithm.
    """
    kinds = _kinds()
    name = record.get("step")
    if name not in kinds:
        raise IntegrityError(f"{name!r} is not a step of this version", found=", ".join(sorted(kinds)), fix="update")
    kind = kinds[name]
    options = {f.name: record[f.name] for f in fields(kind) if f.init and f.name in record}  # type: ignore[arg-type]
    step = kind(**options)
    if step.record() != record:
        raise IntegrityError(
            f"{name} gives other values in this version", found=json.dumps(step.record()), fix="embed and score again"
        )
    return step


def _kinds() -> dict[str, type[Step]]:
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.scores import METHODS, method

    return {kind.__name__: kind for kind in (EmbedLayers, *(method(name) for name in METHODS))}
