"""How the columns of a saved data set came to be: the steps, written beside it, so that a later command knows.

`save_to_disk` keeps columns but not the steps that filled them. `save_rows` adds `safefilter.json`;
`load_rows_with_steps` builds the same steps again, which makes them known to `step.steps_made`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.artifacts import atomic_folder
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.step import Step

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


def save_rows(rows: Dataset | DatasetDict, folder: Path, steps: Sequence[Step], *, name: str, revision: str) -> None:
    """Write `rows` with `save_to_disk` and their trail beside them, all at once or not at all."""
    trail = {"name": name, "revision": revision, "steps": [step.record() for step in steps]}
    with atomic_folder(folder, marker=TRAIL) as scratch:
        rows.save_to_disk(str(scratch))
        (scratch / TRAIL).write_text(json.dumps(trail, indent=1) + "\n", encoding="utf-8")


def load_rows_with_steps(folder: Path) -> Saved:
    """Rows saved by `save_rows`.

    Raises:
        MissingError: not such a folder.
        IntegrityError: a damaged trail, a step of another version, or one this version does not know.
    """
    from datasets import load_from_disk

    path = folder / TRAIL
    if not path.is_file():
        raise MissingError(
            f"{folder} was not written by this program", found=f"no {TRAIL}", fix="make it: hf-safefilter embed --help"
        )
    try:
        trail = json.loads(path.read_text(encoding="utf-8"))
        records, name, revision = list(trail["steps"]), str(trail["name"]), str(trail["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged", fix="embed and score the rows again") from error
    return Saved(load_from_disk(str(folder)), [step_from(record) for record in records], name, revision)


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
