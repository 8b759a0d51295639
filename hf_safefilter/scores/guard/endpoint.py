"""A server that speaks OpenAI's chat protocol: asked again while it is busy, and never trusted with more than it needs.

Each reply has a largest size, and its content a latest time; redirects are not followed. The key, which is read from
the environment alone, stands in no message, and is not sent in plain text to another machine.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from json import dumps
from threading import Event
from typing import Any

from pydantic import ValidationError

from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.scores.guard.reply import Models, Refusal, Reply

KEY = "HF_SAFEFILTER_GUARD_KEY"
"""Environment variable with the key of the server, for those that require one. Others' keys are never sent."""

NO_ANSWER = "no_answer"
"""Reason of a row on which a server that answers others has failed at each try."""

REFUSED = "refused_by_server"
"""Reason of a row that the server does not take, most often because it is longer than the model reads."""

PASSING = frozenset({NO_ANSWER, REFUSED})
"""Reasons that say nothing of the row itself: it is asked again the next time."""

LARGEST_REPLY = 16 * 2**20
"""Bytes of the largest reply: a long answer with 20 alternatives to each token stays far below."""

TRIES = 6
FIRST_PAUSE = 1.0
"""Seconds before the second try; each further pause is twice as long, or as long as the server asks for."""

_LONGEST_PAUSE = 60.0
_TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504}
_NOT_THIS_ROW = {400, 413, 422}
_LONGEST_MESSAGE = 200
_NO_ADDRESS = "`endpoint=...` is not the address of a server"


class Unanswered(Exception):
    """One request without a usable reply.

    Attributes:
        reason: `NO_ANSWER` or `REFUSED`.
        fact: What happened; what the server says about a refusal may repeat the row, and is for samples of ours alone.
    """

    def __init__(self, reason: str, fact: str) -> None:
        super().__init__(fact)
        self.reason, self.fact = reason, fact


def checked_address(endpoint: Any) -> str:
    """The address of a server without a slash at its end.

    Raises:
        OptionError: It is none, or holds more than an address.
    """
    import httpx2

    fix = 'use for example `endpoint="http://127.0.0.1:8000/v1"`'
    try:
        url = httpx2.URL(endpoint)
    except (httpx2.InvalidURL, TypeError) as error:
        raise OptionError(_NO_ADDRESS, fix=fix) from error  # whose words may repeat a password
    if url.userinfo or url.query or url.fragment:
        raise OptionError(
            "the address of an endpoint is recorded, so no password, key or query may stand in it",
            fix=f"put the key into the environment variable {KEY}, and only the address into `endpoint=...`",
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise OptionError(_NO_ADDRESS, fix=fix)
    return str(url).rstrip("/")


def is_loopback(address: str) -> bool:
    """Whether a server is on this machine."""
    import httpx2

    host = httpx2.URL(address).host
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def client(address: str, timeout: float, connections: int) -> Client:
    """This process's client of a server; a forked child has its own."""
    return _client(os.getpid(), address, timeout, connections, os.environ.get(KEY, "").strip())


class Client:
    """Asks one server, from several threads at once.

    Args:
        address: Its address, up to the path of the protocol, e.g. ``http://127.0.0.1:8000/v1``.
        timeout: Seconds that one try may take.
        connections: Number of requests at once.
        key: Its key, or "".
    """

    def __init__(self, address: str, timeout: float, connections: int, key: str) -> None:
        import httpx2

        if not (key.isascii() and key.isprintable()):
            raise OptionError(f"{KEY} is not a key", fix="set it to the key alone, without quotes and line breaks")
        if key and address.startswith("http:") and not is_loopback(address):
            raise OptionError(
                f"the key in {KEY} would be sent to {address} unencrypted",
                fix=f"use an https address, or unset {KEY}",
            )
        headers = {"Accept-Encoding": "identity"}  # so that no small reply unpacks to a large one
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.address, self._timeout = address, timeout
        self._http = httpx2.Client(
            headers=headers,
            timeout=timeout,
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=not is_loopback(address),  # no proxy between this machine and itself
            follow_redirects=False,
        )
        self.stopped = Event()
        """Set to end the pauses between tries, and with them the tries."""

    def ask(self, body: Mapping[str, Any], *, sample: bool = False) -> Reply:
        """The reply to a request for a chat completion.

        Args:
            body: The request.
            sample: Whether the request is a sample of ours: a server that cannot be reached is not waited for, and
                what it says of its refusal may be repeated.

        Raises:
            Unanswered: This request has no usable reply.
            ModelError: No request has one: the server cannot be reached, wants a key, or is another kind of server.
        """
        import httpx2

        fault = ""
        for tries in range(1, TRIES + 1):
            asked_for: float | None = None
            try:
                status, headers, content = self._try("POST", "/chat/completions", dumps(body).encode())
                if status == 200:
                    return Reply.model_validate_json(content)
                fault = f"HTTP {status}"
                if status not in _TEMPORARY:
                    raise self._refusal(status, content, sample)
                asked_for = _seconds(headers.get("Retry-After"))
            except ValidationError:
                fault = "a reply that is not one of a chat completion"
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                fault = f"no connection ({type(error).__name__})"
                if sample or tries == TRIES:
                    raise self._unreachable(fault) from error
            except (httpx2.HTTPError, httpx2.StreamError) as error:
                fault = f"the connection broke ({type(error).__name__})"
            except _TooLarge:
                fault = f"a reply of more than {LARGEST_REPLY:,} bytes"
                break
            pause = asked_for if asked_for is not None else FIRST_PAUSE * 2 ** (tries - 1) * random.uniform(0.5, 1)
            if tries == TRIES or self.stopped.wait(min(pause, _LONGEST_PAUSE)):
                break
        raise Unanswered(NO_ANSWER, fault)

    def models(self) -> list[str]:
        """Names of the models that the server lists; empty if it lists none."""
        import httpx2

        try:
            _, _, content = self._try("GET", "/models", None)
            return [one.id for one in Models.model_validate_json(content).data]
        except (httpx2.HTTPError, httpx2.StreamError, ValidationError, _TooLarge):
            return []

    def _try(self, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of one try; raises what httpx2 raises."""
        import httpx2

        latest = time.monotonic() + self._timeout
        headers = {"Content-Type": "application/json"} if body is not None else {}
        with self._http.stream(method, self.address + path, content=body, headers=headers) as response:
            content = bytearray()
            for piece in response.iter_raw():  # as it comes: a piece of a fixed size may never be full
                content += piece
                if len(content) > LARGEST_REPLY:
                    raise _TooLarge
                if time.monotonic() > latest:
                    raise httpx2.ReadTimeout("the reply takes too long", request=response.request)
            return response.status_code, response.headers, bytes(content)

    def _refusal(self, status: int, content: bytes, sample: bool) -> Exception:
        said = _message(content) if sample else ""
        fact = f"HTTP {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            return ModelError(
                f"the server at {self.address} does not let you ask it (HTTP {status})",
                fix=f"put its key into the environment variable {KEY}",
            )
        if status in _NOT_THIS_ROW:
            return Unanswered(REFUSED, fact)
        if status == 404:
            names = ", ".join(self.models()[:20])
            return ModelError(
                f"the server at {self.address} has no such model, or no chat completions (HTTP 404)",
                found=f"models that it lists: {names}" if names else said or None,
                fix="name one of its models in `model=...`; the address ends where /chat/completions begins, in most "
                "servers with /v1",
            )
        moved = "; redirects are not followed" if 300 <= status < 400 else ""
        return ModelError(
            f"the server at {self.address} does not answer as one of chat completions",
            found=fact + moved,
            fix="correct `endpoint=...`",
        )

    def _unreachable(self, fault: str) -> ModelError:
        return ModelError(
            f"the server at {self.address} cannot be reached",
            found=fault,
            fix="start it, or correct `endpoint=...`, and run the same command again: answers are kept in the row "
            "cache, and no row is asked twice",
        )


class _TooLarge(Exception):
    """A reply beyond `LARGEST_REPLY`."""


@lru_cache(maxsize=8)
def _client(process: int, address: str, timeout: float, connections: int, key: str) -> Client:
    return Client(address, timeout, connections, key)


def _seconds(value: str | None) -> float | None:
    """The seconds of a Retry-After header; None if it holds a date or nothing."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None


def _message(content: bytes) -> str:
    """What a server says of its refusal, in one short line."""
    try:
        said = Refusal.model_validate_json(content).text
    except ValidationError:
        said = ""
    return " ".join(said.split())[:_LONGEST_MESSAGE]
