"""The answers of a person in a file that only grows: each is on disk before the next question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.checks import require_choice
from hf_safefilter.storage.append_log import AppendLog

UNSAFE, SAFE, UNSURE, WITHDRAWN = "unsafe", "safe", "unsure", "withdrawn"
ANSWERS = (UNSAFE, SAFE, UNSURE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the log.

    Attributes:
        row_id: Id of the row.
        label: "unsafe", "safe", "unsure", or "withdrawn": the earlier answer counts no longer.
        who: Who answered, or which file or column the label is from.
        when: Time in UTC, ISO 8601.
        round: Round of the question, from 1; 0 for labels that were made elsewhere.
    """

    row_id: str
    label: str
    who: str
    when: str
    round: int


class LabelLog:
    """Answers, one JSON object a line; the last one on a row counts.

    Raises:
        IntegrityError: A line is no answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = AppendLog(path)
        self._answers = self._log.read(_answer, "label")

    def append(self, answer: Answer) -> None:
        """Write an answer to the disk."""
        require_choice("label", answer.label, (*ANSWERS, WITHDRAWN))
        self._log.append(asdict(answer))
        self._answers.append(answer)

    @property
    def current(self) -> dict[str, Answer]:
        """Row id -> the answer that counts, in the order in which these were given."""
        last: dict[str, Answer] = {}
        for answer in self._answers:
            last.pop(answer.row_id, None)
            if answer.label != WITHDRAWN:
                last[answer.row_id] = answer
        return last

    def summary(self) -> dict[str, Any]:
        """Digest of the file, and how many rows have which label, as the record of a probe states them."""
        return counted(self._log.digest(), self.current.values())


def counted(sha256: str, answers: Iterable[Answer]) -> dict[str, Any]:
    """Digest of a log, and how many rows have which label."""
    labels = [answer.label for answer in answers]
    return {"sha256": sha256, "count": len(labels)} | {name: labels.count(name) for name in ANSWERS}


def _answer(body: dict[str, Any]) -> Answer:
    answer = Answer(**{name: body[name] for name in Answer.__slots__})
    texts = (answer.row_id, answer.label, answer.who, answer.when)
    if not all(isinstance(text, str) for text in texts) or answer.label not in (*ANSWERS, WITHDRAWN):
        raise ValueError(answer.label)
    if not isinstance(answer.round, int):
        raise TypeError(answer.round)
    return answer
