"""Decisions that were made elsewhere: another person's log, or Argilla's records with their responses."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.decide.decision_log import DECISIONS, MASK, WITHDRAWN, RowDecision
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.review.exports import QUESTION, person_id


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file holds.

    Attributes:
        decisions: The last one of each person on each row, in the order of the file; without a time where the file does
            not say it.
        without_turns: Number of responses that mask a row and say of no turn, so that they decide nothing.
    """

    decisions: tuple[RowDecision, ...]
    without_turns: int


def read_decisions(path: Path, people: Collection[str] = ()) -> Imported:
    """The decisions in a file of JSON lines: lines of a log, or records as `exports.write_argilla` writes them.

    Args:
        path: The file.
        people: Names that may stand behind the ids of Argilla's responses; others are named after their id.

    Raises:
        MissingError: There is no such file.
        IntegrityError: A line is neither.
    """
    if not path.is_file():
        raise MissingError(f"there is no file {path}", fix="check the path")
    names = {person_id(name): name for name in people}
    last: dict[tuple[str, str], RowDecision] = {}
    without = 0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = dict(json.loads(line))
            found = list(_of_record(body, names)) if "responses" in body else [RowDecision.of(body)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(
                f"line {number} of {path.name} is no decision, and no record of Argilla",
                fix="name a log of decisions, or a file that review --export-argilla has written",
            ) from error
        for decision in found:
            if decision is None:
                without += 1
            else:
                last.pop((decision.row_id, decision.who), None)
                last[decision.row_id, decision.who] = decision
    made = tuple(decision for decision in last.values() if decision.decision != WITHDRAWN)
    return Imported(made, without)


def _of_record(body: dict[str, Any], names: dict[str, str]) -> Iterator[RowDecision | None]:
    """The responses of a record; None for one that masks."""
    row_id = body["metadata"]["row_id"]
    for response in body["responses"].get(QUESTION, []):
        person, word = str(response["user_id"]), response["value"]
        if word not in DECISIONS:
            raise ValueError(word)
        who = names.get(person, f"argilla {person[:8]}")
        yield None if word == MASK else RowDecision(row_id, word, who, when="")
