"""What of JSON ends the whole process in a parser, found out before: deep nesting, and null where a row should be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from hf_safefilter.errors import DataError

DEEPEST = 100
"""Levels of lists and objects in a row; tool schemas in use have about ten."""

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NULL = b"null"
_OPEN, _CLOSE = np.frombuffer(b"[{", np.uint8), np.frombuffer(b"]}", np.uint8)


def require_parsable(path: Path) -> None:
    """Raise if a line of a JSON file cannot be parsed in safety: it is nested too deeply, or a row that is null.

    pyarrow (26) is ended by SIGSEGV where the rows that it infers the columns from begin with null.

    Raises:
        DataError: It is.
    """
    first = b""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            first = first or line.strip()
            if line.strip() == _NULL and _is_whole(first):
                raise DataError(
                    f"{path.name} cannot be read as rows",
                    found=f"line {number} is JSON but not an object",
                    fix="correct the file",
                )
            if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(line) > DEEPEST:
                raise DataError(
                    f"{path.name} is nested more than {DEEPEST} deep", found=f"line {number}", fix="correct the file"
                )


def _is_whole(line: bytes) -> bool:
    """Whether a line is JSON by itself, as all are in a file with a row a line."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _depth(line: bytes) -> int:
    """Most lists and objects that are open at the same time; what stands in strings does not count."""
    letters = np.frombuffer(_TEXT.sub(b"", line), np.uint8)
    steps = np.isin(letters, _OPEN).astype(np.int32) - np.isin(letters, _CLOSE).astype(np.int32)
    return int(np.cumsum(steps).max(initial=0))
