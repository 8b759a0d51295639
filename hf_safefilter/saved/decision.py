"""A decision on disk: which rows were kept, which were dropped, and by which rule; read by later commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_safefilter.data.splits import count_rows
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.saved.saved_rows import Saved, files_for, load_rows_with_steps, save_rows
from hf_safefilter.storage.atomic import atomic_folder

if TYPE_CHECKING:
    from hf_safefilter.decide.select import IsSafe

DECISION = "decision.json"


@dataclass(frozen=True, slots=True)
class Decided:
    """Number of rows that a written decision keeps and drops."""

    n_kept: int
    n_dropped: int


def write_decision(folder: Path, saved: Saved, is_safe: IsSafe) -> Decided:
    """Write kept/, dropped/ and scored/ (`save_to_disk` folders) and ``decision.json``, all of it or nothing."""
    from hf_safefilter.decide.select import split

    parts = split(saved.rows, is_safe)
    with atomic_folder(folder, marker=DECISION) as scratch:
        for name, part in (("kept", parts.kept), ("dropped", parts.dropped)):
            part.save_to_disk(str(scratch / name), num_shards=files_for(part))
        save_rows(saved.rows, scratch / "scored", saved.steps, name=saved.name, revision=saved.revision)
        (scratch / DECISION).write_text(json.dumps(is_safe.to_json(), indent=1) + "\n", encoding="utf-8")
    return Decided(count_rows(parts.kept), count_rows(parts.dropped))


def read_decision(folder: Path) -> tuple[Saved, IsSafe]:
    """The scored rows and the predicate of a decision written by `write_decision`.

    Raises:
        MissingError: The folder holds no decision.
        IntegrityError: The decision is damaged.
    """
    from hf_safefilter.decide.select import IsSafe

    path = folder / DECISION
    if not path.is_file():
        raise MissingError(f"{folder} holds no decision", fix="make one: hf-safefilter select --help")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_safe = IsSafe.from_json(record)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged", fix="decide again: hf-safefilter select --help") from error
    return load_rows_with_steps(folder / "scored"), is_safe
