"""The Hub that tests talk to: a threaded HTTP server, the repositories behind it, and what the tests ask of it."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from . import reading, writing  # noqa: F401 - they register their endpoints
from .faults import Cut, Fail, Faults, Lose, Race
from .routing import answer, refuse
from .store import Change, File, Refusal, Repo
from .wire import Cutoff, Reply, Request, body_pieces

USER = "loopback"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Hub:
    """A Hub at `url`, with one user signed in by `token`.

    Attributes:
        repos: (``"models"`` or ``"datasets"``, id) -> repository.
        log: every request in the order of arrival, those that met a fault included.
        user: the name of the first user; ``HF_TOKEN`` is theirs.
        token: their token.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.reset()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """Forget repositories, faults and log; users but the first."""
        with self.lock:
            self.repos: dict[tuple[str, str], Repo] = {}
            self.log: list[Request] = []
            self.faults = Faults()
            self._users: dict[str, str] = {}
            self.user, self.token = USER, self.add_user(USER)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_user(self, name: str) -> str:
        """A further user; returns the token that signs them in."""
        token = f"hf_{hashlib.sha256(name.encode()).hexdigest()[:34]}"
        self._users[token] = name
        return token

    # what tests look at

    def repo(self, name: str, kind: str = "datasets") -> Repo:
        return self.repos[kind, name]

    def requests(self, method: str, path: str) -> list[Request]:
        """Those of the log whose method is `method` and whose path matches `path`."""
        return [one for one in self.log if one.method == method and re.search(path, one.path)]

    # what tests make happen

    def fail(
        self,
        method: str,
        path: str,
        status: int,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """The next `times` such requests are answered with `status` and have no effect.

        The Hub itself answers in JSON, as is done here without a `body`; a gateway in front of it may not.
        """
        reply = Reply(status, body) if body is not None else Reply.json({"error": f"injected {status}"}, status)
        reply.headers |= headers or {}
        self.faults.add(Fail(method, re.compile(path), times, reply))

    def cut(self, method: str, path: str, after_bytes: int, times: int = 1) -> None:
        """The next `times` such requests lose their connection when `after_bytes` of the body have arrived."""
        self.faults.add(Cut(method, re.compile(path), times, after_bytes))

    def lose_reply(self, method: str, path: str, times: int = 1) -> None:
        """The next `times` such requests take effect, but the connection is reset instead of an answer."""
        self.faults.add(Lose(method, re.compile(path), times))

    def race(
        self,
        name: str,
        files: Mapping[str, bytes | None],
        *,
        kind: str = "datasets",
        branch: str = "main",
        title: str = "Somebody else was here",
        times: int = 1,
    ) -> None:
        """Just before each of the next `times` commits to a repository, somebody else's lands on `branch`.

        Args:
            files: path -> text of that commit; None removes the path.
        """
        changes = [Change(path, None if text is None else File(text)) for path, text in files.items()]

        def land() -> None:
            self.repo(name, kind).commit(branch, changes, title)

        self.faults.add(Race("POST", re.compile(f"^/api/{kind}/{re.escape(name)}/commit/"), times, land))

    # what the endpoints ask

    def signed_in(self, request: Request) -> str:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        return request.user

    def open(self, kind: str, name: str, request: Request, write: bool = False) -> Repo:
        """The repository, if there is one that this request may see, and change if `write`."""
        repo = self.repos.get((kind, name))
        if repo is None or (repo.private and request.user != repo.owner):
            raise Refusal(404 if request.user else 401, "Repository not found", "RepoNotFound")
        if write and self.signed_in(request) != repo.owner:
            raise Refusal(403, "You have read access but not the required permissions for this operation")
        return repo

    def user_of(self, authorization: str | None) -> str | None:
        if authorization is None:
            return None
        user = self._users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, path, query, None, headers)
        try:
            with self.hub.lock:
                self.hub.log.append(request)
                cut = self.hub.faults.take(Cut, request.method, path)
            request.body = self._body(headers, cut)
            if cut:
                raise Cutoff
            with self.hub.lock:
                reply = self._answer(request)
        except Cutoff:
            self._hang_up()
        else:
            self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _body(self, headers: Mapping[str, str], cut: Cut | None) -> bytes:
        body = bytearray()
        for piece in body_pieces(self.rfile, headers):
            body += piece
            if cut and len(body) >= cut.after:
                break
        return bytes(body)

    def _answer(self, request: Request) -> Reply:
        hub, asked = self.hub, (request.method, request.path)
        try:
            request.user = hub.user_of(request.headers.pop("authorization", None))
        except Refusal as refusal:
            return refuse(refusal)
        if fault := hub.faults.take(Fail, *asked):
            return fault.reply
        if fault := hub.faults.take(Race, *asked):
            fault.act()
        reply = answer(hub, request)
        if hub.faults.take(Lose, *asked):
            raise Cutoff
        return reply

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """The log is `hub.log`; nothing goes to stderr."""
