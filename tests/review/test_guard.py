"""Nobody is let in without the token, from another site, or to a path that is not the page's."""

import asyncio

import pytest

from hf_safefilter.review.guard import Guard
from hf_safefilter.review.review_page import document, policy

TOKEN = "b7e1d3c5a9f04e62"


def scope(path="/review/rows", *, token=TOKEN, host="127.0.0.1:7860", method="GET", query="", kind="http", **headers):
    found = {"host": host, **({"x-review-token": token} if token else {})}
    found |= {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": kind,
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in found.items()],
    }


@pytest.fixture
def guard():
    return Guard(TOKEN, frozenset({"127.0.0.1", "localhost"}), policy(), starting=False)


def test_the_token_opens_the_page_and_what_it_asks_for(guard):
    assert guard.refusal(scope("/", token="", query=f"review={TOKEN}")) is None
    assert guard.refusal(scope()) is None
    assert guard.refusal(scope(host="localhost:7860", method="POST", origin="http://localhost:7860")) is None


@pytest.mark.parametrize("token", ["", "b7e1d3c5a9f04e6", "b7e1d3c5a9f04e63", "B7E1D3C5A9F04E62", "\u00e9"])
def test_any_other_token_opens_nothing(guard, token):
    for path in ("/", "/review/rows", "/review/row/1/decision", "/config", "/gradio_api/startup-events", "/nothing"):
        asked = scope(path, token="", query=f"review={token}")
        asked["headers"].append((b"x-review-token", token.encode("latin-1")))
        assert guard.refusal(asked)[0] == 401


def test_the_token_in_the_wrong_place_opens_nothing(guard):
    assert guard.refusal(scope("/review/rows", token="", query=f"review={TOKEN}"))[0] == 401
    assert guard.refusal(scope("/"))[0] == 401
    twice = scope()
    twice["headers"].append((b"x-review-token", TOKEN.encode()))
    assert guard.refusal(twice)[0] == 401


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:7860", "127.0.0.1.evil.example", "127.0.0.2", "["])
def test_a_name_that_was_pointed_here_opens_nothing(guard, host):
    assert guard.refusal(scope(host=host))[0] == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_another_site_opens_nothing(guard, origin):
    assert guard.refusal(scope(origin=origin))[0] == 403


@pytest.mark.parametrize(
    "path", ["/config", "/gradio_api/queue/join", "/gradio_api/file=/etc/passwd", "/docs", "/revie"]
)
def test_the_paths_of_the_framework_are_closed_with_the_token_too(guard, path):
    assert guard.refusal(scope(path))[0] == 404


def test_sockets_and_large_bodies_are_refused(guard):
    assert guard.refusal(scope(kind="websocket"))[0] == 403
    assert guard.refusal(scope(content_length="65537"))[0] == 413
    assert guard.refusal(scope(content_length="-1"))[0] == 413
    assert guard.refusal(scope(transfer_encoding="chunked"))[0] == 413


def test_the_framework_may_ask_itself_one_thing_while_it_starts():
    guard = Guard(TOKEN, frozenset({"127.0.0.1"}), policy())
    asked = scope("/gradio_api/startup-events", token="")
    assert guard.refusal(asked) is None and guard.refusal(scope("/review/rows", token=""))[0] == 401
    assert guard.refusal(scope("/gradio_api/startup-events", token="", method="POST"))[0] == 401
    guard.starting = False
    assert guard.refusal(asked)[0] == 401


def answers(guard, asked, app=None):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(app, asked, None, send))
    return sent


def test_every_answer_forbids_the_browser_to_ask_anybody_else(guard):
    async def app(_, __, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"public")]})
        await send({"type": "http.response.body", "body": b"{}"})

    for asked in (scope(), scope(token="")):
        headers = dict(answers(guard, asked, app)[0]["headers"])
        assert headers[b"cache-control"] == b"no-store" and headers[b"referrer-policy"] == b"no-referrer"
        rules = headers[b"content-security-policy"].decode()
        assert "default-src 'none'" in rules and "connect-src 'self'" in rules and "unsafe" not in rules
    assert answers(guard, scope(kind="websocket"))[0]["type"] == "websocket.close"


def test_the_page_is_one_document_without_an_address_or_a_place_for_markup():
    page = document()
    assert "http:" not in page and "https:" not in page and "/*script*/" not in page and "//cdn" not in page
    for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc", "@import"):
        assert danger not in page
    assert page.count("<script>") == page.count("</script>") == 1
