"""Verdicts of a running search, appended to a file line by line, so that a killed search can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_safefilter.errors import DataError, IntegrityError
from hf_safefilter.locate.refusals import Verdict
from hf_safefilter.storage.append_log import AppendLog

_LETTERS: dict[Verdict, str] = {"refusal": "r", "answer": "a", "degenerate": "d"}
_VERDICTS = {letter: verdict for verdict, letter in _LETTERS.items()}


class Journal:
    """Verdicts by scaling and prompt, read from a file and appended to it.

    A last line that a kill cut short is dropped. No text is stored.

    Args:
        path: JSON Lines file; None keeps the verdicts in memory only.
        task: What the verdicts depend on (model, prompts, options); a file of another task is refused.

    Raises:
        DataError: The file belongs to another task.
        IntegrityError: The file is damaged.
    """

    def __init__(self, path: Path | None, task: Mapping[str, Any]) -> None:
        self._log = None if path is None else AppendLog(path)
        self._verdicts: dict[tuple[tuple[int, ...], float], dict[int, Verdict]] = {}
        if self._log is None:
            return
        lines = self._log.read(dict, "verdict of a search")
        if not lines:
            self._log.append(task)
        elif lines[0] != json.loads(json.dumps(task)):
            raise DataError(
                f"{path} belongs to another search",
                found="another model, other prompts or other options",
                fix=f"name another folder, or delete {path} to start anew",
            )
        try:
            for line in lines[1:]:
                by_row = self._verdicts.setdefault((tuple(line["blocks"]), line["by"]), {})
                by_row |= zip(line["rows"], (_VERDICTS[letter] for letter in line["verdicts"]), strict=True)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(
                f"{path} was not written by a search", fix="delete it to start anew, or name another folder"
            ) from error

    def holds(self, blocks: tuple[int, ...], by: float, rows: Iterable[int]) -> bool:
        """Whether all of `rows` have a verdict under this scaling."""
        by_row = self._verdicts.get((blocks, by), {})
        return all(row in by_row for row in rows)

    def read(self, blocks: tuple[int, ...], by: float, rows: Iterable[int]) -> list[Verdict]:
        """The verdicts of `rows` under this scaling."""
        by_row = self._verdicts[blocks, by]
        return [by_row[row] for row in rows]

    def add(self, blocks: tuple[int, ...], by: float, rows: Sequence[int], verdicts: Sequence[Verdict]) -> None:
        """Store verdicts; they are on disk when this returns."""
        self._verdicts.setdefault((blocks, by), {}).update(zip(rows, verdicts, strict=True))
        if self._log is not None:
            letters = "".join(_LETTERS[verdict] for verdict in verdicts)
            self._log.append({"blocks": list(blocks), "by": by, "rows": list(rows), "verdicts": letters})
