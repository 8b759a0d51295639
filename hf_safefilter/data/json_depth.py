"""How deeply JSON is nested, found out before a parser that recurses ends the whole process over it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hf_safefilter.errors import DataError

DEEPEST = 100
"""Levels of lists and objects in a row; tool schemas in use have about ten."""

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_OPEN, _CLOSE = np.frombuffer(b"[{", np.uint8), np.frombuffer(b"]}", np.uint8)


def require_shallow(path: Path) -> None:
    """Raise if a line of a JSON file is nested too deeply to be parsed in safety.

    Raises:
        DataError: It is.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(line) > DEEPEST:
                raise DataError(
                    f"{path.name} is nested more than {DEEPEST} deep", found=f"line {number}", fix="correct the file"
                )


def _depth(line: bytes) -> int:
    """Most lists and objects that are open at the same time; what stands in strings does not count."""
    letters = np.frombuffer(_TEXT.sub(b"", line), np.uint8)
    steps = np.isin(letters, _OPEN).astype(np.int32) - np.isin(letters, _CLOSE).astype(np.int32)
    return int(np.cumsum(steps).max(initial=0))
