"""The server of the page: Gradio's, with our page and our few paths in place of its own, on 127.0.0.1 or on a Space."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import MissingError, OptionError, SafefilterError
from hf_safefilter.review.guard import API, PAGE, TOKEN_PARAMETER, Guard
from hf_safefilter.review.review_page import document, policy

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from hf_safefilter.review.review import Review

LOCAL = "127.0.0.1"
_LONGEST_SEARCH = 1000


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    Attributes:
        address: The address of the page, with the token.
        close: Stops it.
    """

    address: str
    close: Callable[[], None]


def require_gradio() -> Any:
    """The module `gradio`, without its requests to other machines.

    Raises:
        MissingError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at each start: usage, and whether there is a newer version
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it is there: not through a proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), LOCAL, "localhost")))
    try:
        import gradio
    except ImportError as error:
        raise MissingError("the review page needs Gradio", fix="pip install 'hf_safefilter[review]'") from error
    if not hasattr(gradio, "Server"):
        raise MissingError(
            "the review page needs Gradio 6", found=gradio.__version__, fix="pip install 'hf_safefilter[review]'"
        )
    return gradio


def application(review: Review, guard: Guard, who: str = "") -> Any:
    """The application, a `gradio.Server`, to be launched.

    Args:
        review: What is shown, and takes the decisions.
        guard: What stands before everything.
        who: The name that the page starts with.
    """
    gradio = require_gradio()
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response as Answer
    from starlette.routing import Route

    class Guarded(gradio.Server):  # type: ignore[misc, name-defined]  # Gradio is imported when it is needed
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await guard(super().__call__, scope, receive, send)

    def page(_: Request) -> Response:
        return Answer(document(), media_type="text/html; charset=utf-8")

    def answering(work: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            body, status = _answer(work, request)
            return Answer(json.dumps(body, allow_nan=False), status, media_type="application/json")

        return answer

    def taking(work: Callable[[Request, dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def take(request: Request) -> Response:
            values = _values(await request.body())
            return await run_in_threadpool(answering(lambda asked: work(asked, values)), request)

        return take

    def row(request: Request) -> dict[str, Any]:
        return review.row(request.path_params["place"], text=request.query_params.get("text") == "1")

    def decide(request: Request, values: dict[str, Any]) -> dict[str, Any]:
        return review.decide(request.path_params["place"], values)

    server = Guarded(docs_url=None, redoc_url=None, openapi_url=None, title="hf_safefilter review")
    server.router.routes += [
        Route(PAGE, page),
        Route(f"{API}rows", answering(lambda _: review.overview() | {"who": who})),
        Route(f"{API}map", answering(lambda _: review.map())),
        Route(f"{API}verdict", answering(lambda _: review.verdict())),
        Route(f"{API}row/{{place:int}}", answering(row)),
        Route(f"{API}row/{{place:int}}/words", answering(lambda asked: review.words(asked.path_params["place"]))),
        Route(f"{API}row/{{place:int}}/decision", taking(decide), methods=["POST"]),
        Route(f"{API}next", taking(lambda _, __: review.next_rows()), methods=["POST"]),
        Route(f"{API}again", taking(lambda _, values: review.score_again(values.get("threshold"))), methods=["POST"]),
        Route(f"{API}search", taking(lambda _, values: review.search(_words(values))), methods=["POST"]),
    ]
    return server


def _values(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _words(values: dict[str, Any]) -> str:
    return str(values.get("words", ""))[:_LONGEST_SEARCH]


def start(review: Review, *, who: str = "", port: int | None = None, token: str | None = None) -> Running:
    """Start the server, and return when it answers.

    On a Hugging Face Space it listens where the Space expects it, and lets its page be framed by the Hub; anywhere else
    it listens on 127.0.0.1 alone.

    Args:
        review: What is shown, and takes the decisions.
        who: The name that the page starts with.
        port: Port; the first free one from 7860 if left out.
        token: What the address must hold; a random one if left out.

    Raises:
        MissingError: Gradio is not installed.
        OptionError: The port is taken, or the token is too short to be one.
    """
    token = token or secrets.token_hex(24)
    if len(token) < 16:
        raise OptionError("the token is shorter than 16 characters", fix="leave it out: a random one is made")
    space = os.environ.get("SPACE_HOST")
    hosts = {LOCAL, "localhost"} | ({space} if space else set())
    guard = Guard(token, frozenset(hosts), policy("https://huggingface.co" if space else "'none'"))
    server = application(review, guard, who)
    try:
        _, local, _ = server.launch(
            server_name=None if space else LOCAL,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            num_workers=0,  # other processes would serve files past the guard
            prevent_thread_lock=True,
            _frontend=False,  # Gradio would ask for its own page, which is not served
        )
    except OSError as error:
        raise OptionError(f"port {port} cannot be used", fix="name another, or leave it out: `port=...`") from error
    guard.starting = False
    address = f"https://{space}/" if space else local
    return Running(f"{address}?{TOKEN_PARAMETER}={token}", partial(server.blocks.close, verbose=False))


def serve(review: Review, *, who: str = "", token: str | None = None) -> None:
    """`start`, and wait until the process ends; what the ``app.py`` of a Space calls. The log gets the address.

    Args:
        review: What is shown, and takes the decisions.
        who: The name that the page starts with.
        token: What the address must hold; a random one if left out.
    """
    import logging

    running = start(review, who=who, token=token)
    logging.getLogger(__name__).warning("the review page: %s", running.address)
    threading.Event().wait()


def _answer(work: Callable[[Request], dict[str, Any]], request: Request) -> tuple[dict[str, Any], int]:
    """What `work` says, or why it could not, and the status of the answer."""
    try:
        return work(request), 200
    except SafefilterError as error:
        return {"error": str(error)}, 409
    except OSError as error:  # a full disk, a folder that may not be written; its path is nothing for the page
        return {"error": f"a file or folder cannot be used: {error.strerror}"}, 507
