"""The answers of a person in a file that only grows: each is on disk before the next question."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.checks import require_choice
from hf_safefilter.errors import IntegrityError

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

    A last line without an end was being written when the process was killed: it is left out, and cut off when the next
    answer is written.

    Raises:
        IntegrityError: A line is no answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers = [_answer(path, number, line) for number, line in enumerate(self._whole().splitlines(), 1)]

    def append(self, answer: Answer) -> None:
        """Write an answer to the disk."""
        require_choice("label", answer.label, (*ANSWERS, WITHDRAWN))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(answer), ensure_ascii=True) + "\n"
        whole = len(self._whole())
        with self.path.open("r+b" if self.path.exists() else "wb") as stream:
            stream.truncate(whole)
            stream.seek(whole)
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
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
        labels = [answer.label for answer in self.current.values()]
        digest = hashlib.sha256(self._whole()).hexdigest()
        return {"sha256": digest, "count": len(labels)} | {name: labels.count(name) for name in ANSWERS}

    def _whole(self) -> bytes:
        """The file up to the end of its last whole line."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        return content[: content.rfind(b"\n") + 1]


def _answer(path: Path, number: int, line: bytes) -> Answer:
    try:
        body = json.loads(line)
        answer = Answer(**{name: body[name] for name in Answer.__slots__})
        texts = (answer.row_id, answer.label, answer.who, answer.when)
        if not all(isinstance(text, str) for text in texts) or answer.label not in (*ANSWERS, WITHDRAWN):
            raise ValueError(answer.label)
        if not isinstance(answer.round, int):
            raise TypeError(answer.round)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"line {number} of {path} is no label", fix="remove the line, or name another output folder"
        ) from error
    return answer
