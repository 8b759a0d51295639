"""Requests as they arrive and replies as they leave: bodies of known length or in chunks, byte ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

PIECE = 1 << 12


class Cutoff(Exception):
    """The connection ended, or is to end, before the exchange did."""


@dataclass
class Request:
    """One request in the log. `user` is None for an anonymous one; the body is what arrived of it."""

    method: str
    path: str
    query: str
    user: str | None
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """Status, headers and body of an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def body_pieces(stream: BinaryIO, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The request's body as it comes in.

    Raises:
        Cutoff: the client went away in the middle of it.
    """
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(_line(stream).split(b";")[0], 16):
            yield from _exactly(stream, size)
            _line(stream)
        _line(stream)
    else:
        yield from _exactly(stream, int(headers.get("content-length", 0)))


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        got = stream.read(min(size, PIECE))
        if not got:
            raise Cutoff
        size -= len(got)
        yield got


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(1024)
    if not line.endswith(b"\n"):
        raise Cutoff
    return line.strip()


def ranged(content: bytes, wanted: str | None, headers: dict[str, str]) -> Reply:
    """All of `content`, or the one byte range that a ``Range`` header asks for (416 where there is none of it)."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not match or not any(match.groups()):
        return Reply(200, content, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    stop = min(len(content), int(last) + 1) if first and last else len(content)
    if start >= stop:
        return Reply(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
    return Reply(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})
