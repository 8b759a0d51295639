"""From a request to the endpoint that answers it, and from a refusal to its reply."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .store import Refusal
from .wire import Reply, Request

if TYPE_CHECKING:
    from .server import Hub

_PARTS = {
    "kind": "(?P<kind>models|datasets)",
    "prefix": "(?P<kind>datasets/)?",
    "id": "(?P<id>[^/]+/[^/]+)",
    "rev": "(?P<rev>[^/]+)",
    "path": "(?P<path>.+)",
    "oid": "(?P<oid>[0-9a-f]{64})",
}
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = []


def answer(hub: Hub, request: Request) -> Reply:
    """The reply to one request; 404 where no endpoint fits it."""
    try:
        for method, pattern, endpoint in _ROUTES:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                return endpoint(hub, request, **{name: unquote(part or "") for name, part in match.groupdict().items()})
        raise Refusal(404, f"no such endpoint: {request.method} {request.path}")
    except Refusal as refusal:
        return refuse(refusal)


def refuse(refusal: Refusal) -> Reply:
    """A refusal as the Hub words it: the reason in the body and, for the client to act on, in the headers."""
    headers = {"X-Error-Message": refusal.message.encode("ascii", "replace").decode()}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return Reply.json({"error": refusal.message} | refusal.body, refusal.status, **headers)


def route(methods: str, template: str) -> Callable:
    """Register an endpoint; the parts of `template` in braces are its arguments."""
    pattern = re.compile(re.sub(r"\{(\w+)\}", lambda part: _PARTS[part[1]], template))

    def register(endpoint: Callable[..., Reply]) -> Callable[..., Reply]:
        _ROUTES.extend((method, pattern, endpoint) for method in methods.split())
        return endpoint

    return register
