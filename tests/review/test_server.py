"""The application on Gradio: what it answers to whom, through a test client."""

import errno
import sys

import pytest

from hf_safefilter.errors import MissingError
from hf_safefilter.review import server
from hf_safefilter.review.guard import Guard
from hf_safefilter.review.review_page import document, policy
from review.scored_folder import HOSTILE, PLAIN

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'hf_safefilter[review]'")
TOKEN = "b7e1d3c5a9f04e62"
ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture
def client(review):
    from starlette.testclient import TestClient

    guard = Guard(TOKEN, frozenset({"127.0.0.1"}), policy(), starting=False)
    return TestClient(server.application(review, guard, "ada"), base_url=ADDRESS, headers={"x-review-token": TOKEN})


def test_the_page_and_its_data(client):
    page = client.get("/", params={"review": TOKEN})
    assert page.text == document() and page.headers["content-type"].startswith("text/html")
    body = client.get("/review/rows").json()
    assert body["rows"] == 60 and body["who"] == "ada" and client.get("/review/map").json()["rows"]
    assert client.get("/review/verdict").json()["sentence"]


def test_without_the_token_everything_is_refused(client):
    from starlette.websockets import WebSocketDisconnect

    del client.headers["x-review-token"]
    for path in (
        "/",
        "/review/rows",
        "/review/row/1",
        "/config",
        "/docs",
        "/openapi.json",
        "/gradio_api/info",
        "/theme.css",
    ):
        answer = client.get(path)
        assert answer.status_code == 401 and "rows" not in answer.text
    assert client.post("/review/row/1/decision", json={"decision": "keep", "who": "eve"}).status_code == 401
    assert client.options("/review/rows").status_code == 401
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/queue"):
        pass


def test_text_is_sent_only_where_it_is_asked_for(client):
    assert PLAIN[:30] not in client.get(f"/review/row/{HOSTILE}").text
    turns = client.get(f"/review/row/{HOSTILE}?text=1").json()["sides"][0]["turns"]
    assert turns[1]["text"] == PLAIN


def test_a_decision_and_its_refusals(client, review):
    answer = client.post("/review/row/3/decision", json={"decision": "drop", "who": "ada", "threshold": 0.5})
    assert answer.json()["decisions"][0]["decision"] == "drop" and len(review.log.current) == 1
    for body in (b"", b"[1]", b"{" * 5000, b'{"decision": "keep"}', b"\xff", b'{"decision": "keep", "who": 3}'):
        refused = client.post("/review/row/3/decision", content=body)
        assert refused.status_code == 409 and refused.json()["error"]
    assert client.post("/review/row/99/decision", json={"decision": "keep", "who": "ada"}).status_code == 409
    assert client.get("/review/row/99").status_code == 409 and client.get("/review/row/a").status_code == 404
    assert len(review.log.current) == 1
    assert client.post("/review/search", json={"words": {"a": 1}}).json()["count"] == 0


def test_a_disk_that_takes_nothing_is_said_on_the_page(client, review, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/home/ada/decisions.jsonl")

    monkeypatch.setattr(type(review), "_append", full)
    answer = client.post("/review/row/1/decision", json={"decision": "keep", "who": "ada"})
    assert answer.status_code == 507 and answer.json()["error"] == (
        "a file or folder cannot be used: No space left on device"
    )


def test_without_gradio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingError, match=r"hf_safefilter\[review\]"):
        server.require_gradio()


def test_a_server_on_the_loopback_interface_alone(review, monkeypatch):
    import socket
    import urllib.error
    import urllib.request

    asked, resolve = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or resolve(host, *rest, **more)
    )
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.3:9")
    running = server.start(review)
    assert set(asked) <= {"127.0.0.1", "localhost"}  # no usage report, no look for a newer version
    try:
        assert running.address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(running.address) as page:
            assert page.read().decode() == document()
        for path in ("gradio_api/startup-events", "config", ""):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(running.address.partition("?")[0] + path)
        port = int(running.address.split(":")[2].partition("/")[0])
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex(("127.0.0.2", port)) != 0
    finally:
        running.close()
