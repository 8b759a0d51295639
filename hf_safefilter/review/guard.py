"""Who may ask the page's server for anything: those who know the token, from a page of this very address.

The rows may be harmful or private, and any page in the same browser can send requests to 127.0.0.1. So each request
must carry a random token, its Host header must name this server (or another site whose name was pointed at 127.0.0.1
would be let in), and only the few paths of the page exist: those of the framework beneath are closed.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_HEADER, TOKEN_PARAMETER = "x-review-token", "review"
PAGE, API = "/", "/review/"
"""The page, whose address has the token, and the folder of what it asks for, with the token in a header."""

LARGEST_BODY = 65536
"""Bytes of the largest request."""

_STARTUP = "/gradio_api/startup-events"


@dataclass(slots=True)
class Guard:
    """Refuses requests, and adds headers to every answer.

    Attributes:
        token: What a request must carry.
        hosts: Names that the Host header may have, without a port.
        policy: Content-Security-Policy of the page.
        starting: Whether the server is still starting: then one request of its own is let through, without an answer
            to anything.
    """

    token: str
    hosts: frozenset[str]
    policy: str
    starting: bool = True

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason of a refusal; None for a request that may pass."""
        if scope["type"] != "http":
            return 403, "no connection of this kind"
        path = str(scope["path"])
        headers = _headers(scope)
        if not self._is_ours(headers.get("host", "")):
            return 421, "another host"
        if self.starting and path == _STARTUP and scope["method"] == "GET":
            return None
        given = headers.get(TOKEN_HEADER, "")
        if path == PAGE:
            given = next(iter(parse_qs(scope.get("query_string", b"").decode("latin-1")).get(TOKEN_PARAMETER, [])), "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 401, "the address lacks the token that the command has printed"
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(urlsplit(origin).netloc):
            return 403, "another origin"
        if path != PAGE and not path.startswith(API):
            return 404, "there is nothing here"
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > LARGEST_BODY:
            return 413, "too large"
        return None

    def headers(self) -> Iterable[tuple[bytes, bytes]]:
        """Headers of every answer."""
        yield b"content-security-policy", self.policy.encode()
        yield b"cache-control", b"no-store"
        yield b"x-content-type-options", b"nosniff"
        yield b"referrer-policy", b"no-referrer"
        yield b"cross-origin-resource-policy", b"same-origin"
        yield b"permissions-policy", b"camera=(), microphone=(), geolocation=(), clipboard-read=()"

    def _is_ours(self, place: str) -> bool:
        try:
            return urlsplit(f"//{place}").hostname in self.hosts
        except ValueError:
            return False

    async def __call__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to `app`, or refuse it."""
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if refused is None:
            await app(scope, receive, self._marked(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, reason = refused
            marked = self._marked(send)
            kind = [(b"content-type", b"text/plain; charset=utf-8")]
            await marked({"type": "http.response.start", "status": status, "headers": kind})
            await marked({"type": "http.response.body", "body": f"{reason}\n".encode()})

    def _marked(self, send: Send) -> Send:
        """`send` with the headers of every answer."""
        own = list(self.headers())
        names = {name for name, _ in own}

        async def marked(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message = {**message, "headers": [*kept, *own]}
            await send(message)

        return marked


def _headers(scope: Scope) -> Mapping[str, str]:
    """Headers by name; one that is given twice is worth nothing."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        headers[key] = "" if key in headers else value.decode("latin-1")
    return headers
