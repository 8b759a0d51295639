"""A file of JSON lines that only grows: what was appended is on the disk before `append` returns."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hf_safefilter.errors import IntegrityError

Entry = TypeVar("Entry")


class AppendLog:
    """Lines of a file.

    A last line without an end was being written when the process was killed: it is left out, and cut off when the next
    line is appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, make: Callable[[dict[str, Any]], Entry], what: str) -> list[Entry]:
        """`make` of the values of each whole line, a JSON object.

        Args:
            make: Makes an entry, or raises ValueError, KeyError or TypeError.
            what: What an entry is, for the message of the error, e.g. "label".

        Raises:
            IntegrityError: A line is something else.
        """
        entries = []
        content = self._content()
        whole = content[: content.rfind(b"\n") + 1]
        begun = content[len(whole) :]
        lines = [*whole.splitlines(), *([] if begun.startswith(b"{") or not begun else [begun])]
        for number, line in enumerate(lines, 1):
            try:
                entries.append(make(dict(json.loads(line))))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise IntegrityError(
                    f"line {number} of {self.path} is no {what}",
                    fix="remove this line, or name another file to start anew",
                ) from error
        return entries

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(values, ensure_ascii=True) + "\n"
        with self.path.open("a+b") as stream:  # to append: the lines of another who writes here stay whole
            if size := stream.seek(0, os.SEEK_END):
                stream.seek(size - 1)
                if stream.read(1) != b"\n":
                    stream.truncate(len(self._whole()))
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def digest(self) -> str:
        """SHA-256 of all whole lines, hexadecimal."""
        return hashlib.sha256(self._whole()).hexdigest()

    def _whole(self) -> bytes:
        """The file up to the end of its last whole line."""
        content = self._content()
        return content[: content.rfind(b"\n") + 1]

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b""
