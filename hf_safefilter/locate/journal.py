"""What a search has found so far, line by line on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_safefilter.errors import DataError, IntegrityError
from hf_safefilter.locate.refusals import Verdict
from hf_safefilter.storage.atomic import atomic_text

_LETTERS: dict[Verdict, str] = {"refusal": "r", "answer": "a", "degenerate": "d"}
_VERDICTS = {letter: verdict for verdict, letter in _LETTERS.items()}


class Journal:
    """Verdicts by scaling and row; appended to a file, if there is one, and read back from it.

    A line that a kill cut short is left out. No text is kept.

    Args:
        path: a JSON Lines file; None: nothing outlives the process.
        task: what the verdicts depend on (model, prompts, options); a file of another task is refused.

    Raises:
        DataError: the file belongs to another task.
        IntegrityError: it is damaged.
    """

    def __init__(self, path: Path | None, task: Mapping[str, Any]) -> None:
        self._path = path
        self._found: dict[tuple[tuple[int, ...], float], dict[int, Verdict]] = {}
        if path is None:
            return
        try:
            lines = _whole_lines(path)
            for line in lines[1:]:
                found = self._found.setdefault((tuple(line["blocks"]), line["by"]), {})
                found |= zip(line["rows"], (_VERDICTS[letter] for letter in line["verdicts"]), strict=True)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{path} is not what a search wrote", fix="delete it to start anew, or name another folder"
            ) from error
        if lines and lines[0] != json.loads(json.dumps(task)):
            raise DataError(
                f"{path} holds the beginning of another search",
                found="another model, other prompts or other options",
                fix=f"name another folder, or delete {path} to start anew",
            )
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(task, "w")
        else:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            if text != path.read_text(encoding="utf-8"):  # a line was cut short: the next one must not follow it
                atomic_text(path, text)

    def holds(self, blocks: tuple[int, ...], by: float, rows: Iterable[int]) -> bool:
        """Whether all of `rows` have their verdict."""
        found = self._found.get((blocks, by), {})
        return all(row in found for row in rows)

    def read(self, blocks: tuple[int, ...], by: float, rows: Iterable[int]) -> list[Verdict]:
        """The verdicts of `rows`."""
        found = self._found[blocks, by]
        return [found[row] for row in rows]

    def add(self, blocks: tuple[int, ...], by: float, rows: Sequence[int], verdicts: Sequence[Verdict]) -> None:
        """Keep verdicts; they are on disk when this returns."""
        self._found.setdefault((blocks, by), {}).update(zip(rows, verdicts, strict=True))
        if self._path is not None:
            letters = "".join(_LETTERS[verdict] for verdict in verdicts)
            self._write({"blocks": list(blocks), "by": by, "rows": list(rows), "verdicts": letters}, "a")

    def _write(self, line: Mapping[str, Any], mode: str) -> None:
        with self._path.open(mode, encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            found.append(json.loads(line))
    return found
