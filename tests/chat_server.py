"""A small server of OpenAI's chat protocol on the loopback interface: a real model, and faults."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[["_Handler"], None]
"""Answers one request in place of the server."""


class ChatServer:
    """Serves a causal model at `address` until it is closed.

    Attributes:
        log: The bodies of all requests for completions, those that met a fault included.
        keys: The Authorization header of each.
        faults: What happens to the next requests, one each; None: nothing.
        most: Largest number of alternatives to a token; a request for more is refused. 0: log-probabilities are.
        name: Name of the model, as it states it; None: it states none.
        key: Key that it requires.
        window: Number of tokens that the model reads; longer requests are refused.
        delay: Seconds before each answer.
        always: What happens to every request beyond those of `faults`.
        busiest: The largest number of requests at once.
    """

    def __init__(self, folder: str, name: str | None = "tiny-guard") -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._lock = threading.Lock()
        self._name = name
        self.reset()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"owner": self}))
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.address = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self) -> None:
        """Forget log, faults and settings."""
        self.name, self.served = self._name, ["tiny-guard"]
        self.log: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.most, self.window, self.delay = 20, 2048, 0.0
        self.key: str | None = None
        self.busy = self.busiest = 0

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, *faults: Fault | None) -> None:
        """What happens to the next requests."""
        self.faults.extend(faults)

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a request."""
        if body["model"] not in self.served:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        top = body.get("top_logprobs", 0) if body.get("logprobs") else 0
        if top > self.most:
            return 400, {"error": {"message": f"top_logprobs may be at most {self.most}"}}
        variables = body.get("chat_template_kwargs", {})
        text = self._tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True, **variables
        )
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > self.window:
            return 400, {"error": {"message": "this exceeds the context length"}}
        with self._lock:
            written, tokens = self._write(list(ids), body["max_tokens"], top)
        answer = self._tokenizer.decode(written, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": answer}}
        if top:
            choice["logprobs"] = {"content": tokens}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return 200, {"object": "chat.completion", "model": self.name, "choices": [choice], "usage": usage}

    def _write(self, ids: list[int], most: int, top: int) -> tuple[list[int], list[dict[str, Any]]]:
        """The likeliest tokens after `ids`, one after the other, and what else might have stood there."""
        written: list[int] = []
        tokens: list[dict[str, Any]] = []
        with torch.inference_mode():
            while len(written) < most:
                chances = self._model(torch.tensor([ids + written])).logits[0, -1].double().log_softmax(-1)
                values, places = chances.topk(max(top, 1))
                listed = [
                    {"token": self._tokenizer.decode([place]), "logprob": value}
                    for value, place in zip(values.tolist(), places.tolist(), strict=True)
                ]
                if places[0].item() == self._tokenizer.eos_token_id:
                    break
                written.append(int(places[0]))
                tokens.append({**listed[0], "top_logprobs": listed})
        return written, tokens


class _Handler(BaseHTTPRequestHandler):
    owner: ChatServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": name} for name in self.owner.served]})

    def do_POST(self) -> None:
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"detail": "Not Found"})
        with owner._lock:
            owner.log.append(body)
            owner.keys.append(self.headers["Authorization"])
            fault = owner.faults.popleft() if owner.faults else owner.always
            owner.busy += 1
            owner.busiest = max(owner.busiest, owner.busy)
        try:
            if owner.delay:
                time.sleep(owner.delay)
            if fault is not None:
                return fault(self)
            if owner.key is not None and self.headers["Authorization"] != f"Bearer {owner.key}":
                return self.reply(401, {"error": "Unauthorized"})
            return self.reply(*owner.complete(body))
        finally:
            with owner._lock:
                owner.busy -= 1

    def reply(self, status: int, body: Any, **headers: str) -> None:
        """Send an answer; a body that is bytes is sent as it is."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


def status(code: int, **headers: str) -> Fault:
    """An answer with this status."""
    return lambda handler: handler.reply(code, {"error": {"message": f"injected {code}"}}, **headers)


def sends(body: Any) -> Fault:
    """An answer with this body."""
    return lambda handler: handler.reply(200, body)


def cut(handler: _Handler) -> None:
    """Half of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def hangs(seconds: float) -> Fault:
    """No answer, for some time."""

    def wait(handler: _Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return wait


def drips(handler: _Handler) -> None:
    """An answer that never ends, a byte at a time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


def floods(handler: _Handler) -> None:
    """An answer that never ends, as fast as it can be read."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        handler.close_connection = True
