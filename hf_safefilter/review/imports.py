"""Decisions that were made elsewhere: another person's log, or Argilla's records with their responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from hf_safefilter.decide.decision_log import DECISIONS, MASK, RowDecision
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.review.exports import QUESTION, person_id
from hf_safefilter.storage.append_log import AppendLog

_LONGEST_ID = 64

_Entries: TypeAlias = "list[RowDecision | None]"


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file holds.

    Attributes:
        decisions: The last one of each person on each row, in the order of the file, withdrawn ones too; without a time
            where the file does not say it.
        without_turns: Number of responses that mask a row and say of no turn, so that they decide nothing.
    """

    decisions: tuple[RowDecision, ...]
    without_turns: int


def read_decisions(path: Path, people: Collection[str] = ()) -> Imported:
    """The decisions in a file: lines of a log, or Argilla's records, in an array as it writes them or a line each.

    Args:
        path: The file.
        people: Names that may stand behind the ids of Argilla's responses; others are named after their id.

    Raises:
        MissingError: There is no such file.
        IntegrityError: A line or a record is neither.
    """
    if not path.is_file():
        raise MissingError(f"there is no file {path}", fix="check the path")
    names = {person_id(name): name for name in people}

    def entries(body: dict[str, Any]) -> list[RowDecision | None]:
        return list(_of_record(body, names)) if "responses" in body else [RowDecision.of(body)]

    last: dict[tuple[str, str], RowDecision] = {}
    without = 0
    read = _in_array(path, entries)
    if read is None:
        read = AppendLog(path).read(entries, "decision, and no record of Argilla")
    for decision in chain.from_iterable(read):
        if decision is None:
            without += 1
        else:
            last.pop((decision.row_id, decision.who), None)
            last[decision.row_id, decision.who] = decision
    return Imported(tuple(last.values()), without)


def _in_array(path: Path, entries: Callable[[dict[str, Any]], _Entries]) -> list[_Entries] | None:
    """`entries` of each member of the array that a file is; None for a file that is none."""
    content = path.read_bytes()
    if not content.lstrip().startswith(b"["):
        return None
    found: list[_Entries] = []
    bodies = None
    try:
        bodies = json.loads(content)
        found += (entries(dict(body)) for body in bodies)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{path} is no whole array" if bodies is None else f"record {len(found) + 1} of {path} is no decision"
        raise IntegrityError(
            f"{what}, or its records are not those of Argilla", fix="write it again: dataset.records.to_json(path)"
        ) from error
    return found


def _of_record(body: dict[str, Any], names: dict[str, str]) -> Iterator[RowDecision | None]:
    """The responses of a record; None for one that masks."""
    row_id = body["metadata"]["row_id"]
    for response in body["responses"].get(QUESTION, []):
        person, word = str(response["user_id"]), response["value"]
        if word not in DECISIONS:
            raise ValueError(word)
        who = names.get(person, f"argilla {person if len(person) <= _LONGEST_ID else person_id(person)}")
        yield None if word == MASK else RowDecision(row_id, word, who, when="")
