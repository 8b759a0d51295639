"""A decision on disk: which rows were kept, which were dropped, and by which rule; read by later commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.splits import count_rows
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.saved.saved_rows import Saved, files_for, load_rows_with_steps, save_rows
from hf_safefilter.storage.atomic import atomic_folder

if TYPE_CHECKING:
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.decide.verdict import Verdict

DECISION = "decision.json"


@dataclass(frozen=True, slots=True)
class Decided:
    """Number of rows that a written decision keeps and drops."""

    n_kept: int
    n_dropped: int


def write_decision(
    folder: Path, saved: Saved, is_safe: IsSafe, verdict: Verdict | None = None, *, anyway: bool = False
) -> Decided:
    """Write kept/, dropped/ and scored/ (`save_to_disk` folders) and ``decision.json``, all of it or nothing.

    Args:
        folder: The folder to write.
        saved: The scored rows.
        is_safe: The decision.
        verdict: What is known of the deciding score.
        anyway: Whether the user insists on the decision in spite of a bad verdict.
    """
    from hf_safefilter.decide.select import split

    parts = split(saved.rows, is_safe)
    with atomic_folder(folder, marker=DECISION) as scratch:
        for name, part in (("kept", parts.kept), ("dropped", parts.dropped)):
            part.save_to_disk(str(scratch / name), num_shards=files_for(part))
        save_rows(saved.rows, scratch / "scored", saved.steps, name=saved.name, revision=saved.revision)
        body = is_safe.to_json() | {"verdict": None if verdict is None else verdict.to_json(), "anyway": anyway}
        (scratch / DECISION).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return Decided(count_rows(parts.kept), count_rows(parts.dropped))


def read_decision(folder: Path) -> tuple[Saved, IsSafe]:
    """The scored rows and the predicate of a decision written by `write_decision`.

    Raises:
        MissingError: The folder holds no decision.
        IntegrityError: The decision is damaged.
    """
    from hf_safefilter.decide.select import IsSafe

    record = _record(folder)
    try:
        is_safe = IsSafe.from_json(record)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder) from error
    return load_rows_with_steps(folder / "scored"), is_safe


def read_verdict(folder: Path) -> tuple[Verdict | None, bool]:
    """The verdict in a decision written by `write_decision`, and whether the user insists in spite of it.

    Raises:
        MissingError: The folder holds no decision.
        IntegrityError: The decision is damaged.
    """
    from hf_safefilter.decide.verdict import Verdict

    record = _record(folder)
    body = record.get("verdict")
    return None if body is None else Verdict.from_json(body), record.get("anyway") is True


def _record(folder: Path) -> dict[str, Any]:
    path = folder / DECISION
    if not path.is_file():
        raise MissingError(f"{folder} holds no decision", fix="make one: hf-safefilter select --help")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _damaged(folder) from error


def _damaged(folder: Path) -> IntegrityError:
    return IntegrityError(f"{folder / DECISION} is damaged", fix="decide again: hf-safefilter select --help")
