"""A decision on disk: which rows were kept, which were dropped, and by which rule; read by later commands.

A signed record binds the decision to the scored rows. Whoever wrote it, a threshold is found again by its rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.saved_folders import open_saved
from hf_safefilter.data.splits import count_rows, joined, splits_of
from hf_safefilter.decide.additions import Additions
from hf_safefilter.errors import IntegrityError, MissingError, SafefilterError
from hf_safefilter.saved.saved_rows import SCORED, Saved, files_for, load_rows_with_steps, save_rows
from hf_safefilter.storage.atomic import atomic_folder
from hf_safefilter.storage.recorded_files import record_files, require_recorded

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
    folder: Path,
    saved: Saved,
    is_safe: IsSafe,
    verdict: Verdict | None = None,
    *,
    selection: Mapping[str, Any] | None = None,
    anyway: bool = False,
    additions: Additions | None = None,
) -> Decided:
    """Write kept/, dropped/ and scored/ (`save_to_disk` folders) and ``decision.json``, all of it or nothing.

    Args:
        folder: The folder to write.
        saved: The scored rows.
        is_safe: The decision.
        verdict: What is known of the deciding score.
        selection: The options of `threshold_for` that gave the threshold.
        anyway: Whether the user insists on the decision in spite of a bad verdict.
        additions: Rows that are added to the kept ones.
    """
    from hf_safefilter.decide.select import split

    parts = split(saved.rows, is_safe)
    kept = parts.kept if additions is None else joined(additions.appended_to(splits_of(parts.kept)))
    with atomic_folder(folder, marker=DECISION) as scratch:
        for name, part in (("kept", kept), ("dropped", parts.dropped)):
            part.save_to_disk(str(scratch / name), num_shards=files_for(part))
        saved.require_unchanged()
        save_rows(
            saved.rows,
            scratch / SCORED,
            saved.steps,
            name=saved.name,
            revision=saved.revision,
            trusted=saved.trusted,
            recheck=saved.require_unchanged,
        )
        body = is_safe.to_json() | {"verdict": None if verdict is None else verdict.to_json(), "anyway": anyway}
        body |= {"selection": None if selection is None else dict(selection)}
        body |= {"added": None if additions is None else additions.facts()}
        (scratch / DECISION).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        record_files(scratch, DECISION)
    return Decided(count_rows(parts.kept), count_rows(parts.dropped))


@dataclass(frozen=True, slots=True)
class ReadDecision:
    """A decision that an earlier command has written.

    Attributes:
        saved: The scored rows.
        is_safe: The decision.
        verdict: What is known of the deciding score; None if nothing was written, or by somebody else.
        anyway: Whether the user insists on the decision in spite of a bad verdict.
        additions: Rows that were added to the kept ones.
    """

    saved: Saved
    is_safe: IsSafe
    verdict: Verdict | None
    anyway: bool
    additions: Additions | None = None


def read_decision(folder: Path, *, trust_vectors: bool = False) -> ReadDecision:
    """A decision written by `write_decision`.

    Args:
        folder: The folder.
        trust_vectors: Whether the user trusts who has written it, if it was not this machine. Its threshold must then
            follow from its rule, and its verdict is not taken over.

    Raises:
        MissingError: The folder holds no decision.
        IntegrityError: Anything in it was altered; it is from elsewhere and not trusted; or its threshold does not
            follow from its rule.
    """
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.decide.verdict import Verdict

    record = _record(folder)
    ours = require_recorded(folder, DECISION, trust_vectors=trust_vectors)
    saved = load_rows_with_steps(folder / SCORED, trust_vectors=trust_vectors)
    try:
        is_safe = IsSafe.from_json(record)
        verdict = None if record.get("verdict") is None or not ours else Verdict.from_json(record["verdict"])
        selection = None if record.get("selection") is None else dict(record["selection"])
        kept = None if record.get("added") is None else open_saved(folder / "kept")
        additions = None if kept is None else Additions.of_kept(kept, record["added"], saved.own_columns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder) from error
    _require_rule(folder, saved, is_safe, selection, ours=ours)
    trusted = replace(saved, trusted=saved.trusted or not ours)
    return ReadDecision(trusted, is_safe, verdict, ours and record.get("anyway") is True, additions)


def _require_rule(folder: Path, saved: Saved, is_safe: IsSafe, selection: dict[str, Any] | None, *, ours: bool) -> None:
    """Raise unless the threshold and its sentence are those that the rule gives for these scores."""
    from hf_safefilter.decide.thresholds import threshold_for

    if selection is None or "known_good" in selection:  # such rows are not in the folder
        if ours:
            return
        raise IntegrityError(
            f"the threshold in {folder / DECISION} cannot be found again",
            found="no rule" if selection is None else "a rule by rows that are not in the folder",
            fix="decide again: hf-safefilter select --help",
        )
    try:
        again = threshold_for(saved.rows, is_safe.column, **selection)
    except (SafefilterError, TypeError) as error:
        raise _damaged(folder) from error
    if (float(again), again.rule) != (is_safe.threshold, is_safe.rule):
        raise IntegrityError(
            f"the threshold in {folder / DECISION} does not follow from its rule",
            found=f"{is_safe.threshold:.6g} ({is_safe.rule}) instead of {float(again):.6g} ({again.rule})",
            fix="decide again: hf-safefilter select --help",
        )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / DECISION
    if not path.is_file():
        raise MissingError(f"{folder} holds no decision", fix="make one: hf-safefilter select --help")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(folder) from error


def _damaged(folder: Path) -> IntegrityError:
    return IntegrityError(f"{folder / DECISION} is damaged", fix="decide again: hf-safefilter select --help")
