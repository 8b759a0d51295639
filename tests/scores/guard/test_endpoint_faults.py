"""What a server can do wrong: an answer is asked for again, a row without one is never safe, and none is paid twice."""

import json
import logging
import os
import signal
from collections import Counter
from concurrent import futures
from types import SimpleNamespace

import numpy as np
import pytest
from chat_server import ChatServer, cut, drips, floods, hangs, sends, status
from processes import start, wait_until
from stand_in import safe_rows, unsafe_rows

from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.scores.guard import GuardScore, asking, endpoint

ROWS = [*unsafe_rows(20), *safe_rows(20)]
GOOD = {"role": "assistant", "content": "\n\nsafe"}


def batch_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def at(server, **options):
    """A guard that knows its server, so that only rows are asked about."""
    known = {"served": "tiny-guard", "top_logprobs": 20, "concurrency": 4}
    return GuardScore("tiny-guard", "llama_guard_3", endpoint=server.address, **known | options)


def scores_of(step, rows=ROWS):
    return step(batch_of(rows))["guard_score"]


@pytest.fixture
def answered(monkeypatch):
    """How often each question was answered."""
    found: Counter[str] = Counter()
    whole = ChatServer.complete

    def complete(self, body):
        done = whole(self, body)
        if done[0] == 200:
            found[json.dumps(body["messages"])] += 1
        return done

    monkeypatch.setattr(ChatServer, "complete", complete)
    return found


@pytest.mark.parametrize(
    "faults",
    [
        [status(500), status(503), status(429)],
        [cut, cut],
        [sends(b"<html>busy</html>"), sends({"error": "busy"}), sends(b"")],
        [status(502)] * 5,
    ],
)
def test_what_passes_is_tried_again(server, faults):
    expected = scores_of(at(server))
    server.log.clear()
    server.fail(*faults)
    np.testing.assert_array_equal(scores_of(at(server)), expected)
    assert len(server.log) == len(ROWS) + len(faults)


def test_a_server_that_asks_for_patience_is_waited_for(server, monkeypatch):
    paused: list[float] = []
    client = endpoint.client(server.address, 5.0, 1)
    client.stopped = SimpleNamespace(wait=paused.append)
    body = {"model": "tiny-guard", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 1.0)
    server.fail(*[status(429, Retry_After=value) for value in ("7", "999", "soon")], status(500))
    client.ask(body)
    assert paused[:2] == [7.0, 60.0] and 2 <= paused[2] <= 4 <= paused[3] <= 8


def test_a_row_without_an_answer_has_no_score_and_no_other_suffers(server, caplog):
    rows = ROWS[18:22]
    expected = scores_of(at(server), rows)
    for fault in (status(500), sends({"choices": []}), floods):
        server.fail(*[fault] * (1 if fault is floods else endpoint.TRIES))
        found = at(server, concurrency=1)(batch_of(rows))
        assert np.isnan(found["guard_score"]).tolist() == [True, False, False, False] and found["guard_turn"][0] == -1
        assert found["guard_unscored"][0] == "no_answer"
        np.testing.assert_array_equal(found["guard_score"][1:], expected[1:])
    assert caplog.messages[-1] == "1 rows have no guard score: no_answer"


@pytest.mark.parametrize("fault", [hangs(30), drips])
def test_a_hang_ends(server, fault):
    server.fail(fault)
    found = scores_of(at(server, timeout=1.0), ROWS[:3])
    assert np.isfinite(found).all() and len(server.log) >= 4


def test_answers_that_are_no_verdict(server):
    said = {"model": "tiny-guard", "choices": [{"message": {"content": "I cannot say."}}]}
    without = {"model": "tiny-guard", "choices": [{"message": GOOD}]}
    server.fail(sends(said), sends(without))
    found = at(server, concurrency=1)(batch_of(ROWS[:3]))
    assert found["guard_unscored"].tolist() == ["no_verdict", "no_verdict", ""], "words are not mixed with chances"
    assert np.isnan(found["guard_score"]).tolist() == [True, True, False]
    server.fail(sends(without))
    assert scores_of(at(server, top_logprobs=0), ROWS[:1]).tolist() == [0.0]


def test_a_row_that_the_server_refuses(server, caplog):
    server.window = 60
    rows = [*ROWS[:2], {"prompt": "Ask", "response": "on and on " * 60}]
    found = at(server)(batch_of(rows))
    assert found["guard_unscored"].tolist() == ["", "", "refused_by_server"] and np.isnan(found["guard_score"][2])
    assert "context length" not in caplog.text, "what a server says of a row may repeat it"


def test_one_of_several_answers_without_a_verdict_leaves_the_row_without_a_score(server):
    turns = [turn for row in ROWS[-2:] for turn in ({"role": "user", "content": row["prompt"]},
                                                    {"role": "assistant", "content": row["response"]})]  # fmt: skip
    server.fail(None, sends({"model": "tiny-guard", "choices": [{"message": {"content": "?"}}]}))
    found = at(server, concurrency=1)({"messages": [turns]})
    assert np.isnan(found["guard_score"][0]) and found["guard_unscored"].tolist() == ["no_verdict"]


def test_a_server_that_is_not_there_is_one_error_before_the_work(server):
    gone = ChatServer.__new__(ChatServer)
    gone.address = "http://127.0.0.1:9/v1"
    with pytest.raises(ModelError, match=r"server at http://127.0.0.1:9/v1 cannot be reached[\s\S]*fix: start it"):
        GuardScore("tiny-guard", "llama_guard_3", endpoint=gone.address)
    with pytest.raises(ModelError, match="cannot be reached"):
        at(gone)(batch_of(ROWS))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404), "models that it lists: tiny-guard, other"),
        (status(302, Location="http://127.0.0.1:9/v1"), "HTTP 302: injected 302; redirects are not followed"),
        (status(403), r"HTTP 403"),
        (status(418), "does not answer as one of chat completions"),
    ],
)
def test_what_is_wrong_with_all_requests_ends_the_work(server, fault, said):
    server.served.append("other")
    server.always = fault
    with pytest.raises(ModelError, match=said):
        GuardScore("tiny-guard", "llama_guard_3", endpoint=server.address)
    assert len(server.log) == 1
    server.log.clear()
    with pytest.raises(ModelError) as told:
        scores_of(at(server))
    assert len(server.log) <= 8 and "injected" not in str(told.value)


def test_a_model_that_the_server_does_not_have(server):
    with pytest.raises(ModelError, match=r"no such model[\s\S]*models that it lists: tiny-guard"):
        GuardScore("absent", "llama_guard_3", endpoint=server.address)
    with pytest.raises(ModelError, match="serves another model"):
        GuardScore("tiny-guard", "llama_guard_3", endpoint=server.address, served="other")


def test_another_model_in_the_middle_ends_the_work(server):
    server.fail(*[None] * 10)
    whole = server.complete

    def renamed(handler):
        code, body = whole(server.log[-1])
        handler.reply(code, body | {"model": "other"})

    server.always = renamed
    with pytest.raises(ModelError, match=r"another model than before[\s\S]*other instead of tiny-guard"):
        scores_of(at(server))
    server.reset()
    server.name = None
    with pytest.raises(ModelError, match="no name instead of tiny-guard"):
        scores_of(at(server))
    assert np.isfinite(scores_of(at(server, served=""))).all()


def test_when_a_server_goes_down_nothing_that_was_answered_is_asked_again(server, kept, answered):
    step, rows = at(server), [*ROWS, *unsafe_rows(60)[20:]]
    server.fail(*[None] * 20)
    server.always = status(500)
    with pytest.raises(ModelError, match=r"does not answer any more[\s\S]*HTTP 500, \d+ times in succession"):
        scores_of(step, rows)
    assert answered.total() == 20
    server.always = None
    kept()
    assert np.isfinite(scores_of(step, rows)).all()
    assert set(answered.values()) == {1} and answered.total() == len(rows)


def test_what_passes_is_not_kept_and_what_was_paid_for_is(server, kept, answered):
    step = at(server, concurrency=1)
    server.fail(*[status(500)] * 6, sends({"model": "tiny-guard", "choices": [{"message": {"content": "?"}}]}))
    first = step(batch_of(ROWS))
    assert Counter(first["guard_unscored"]) == {"": 38, "no_answer": 1, "no_verdict": 1}
    kept()
    again = step(batch_of(ROWS))
    assert Counter(again["guard_unscored"]) == {"": 39, "no_verdict": 1}
    assert set(answered.values()) == {1} and answered.total() == 39
    server.log.clear()
    at(server, concurrency=7, timeout=9.0)(batch_of(ROWS))
    assert not server.log, "how it is asked decides no score"
    at(server, max_tokens=9)(batch_of(ROWS[:3]))
    assert len(server.log) == 3


def test_after_ctrl_c_nothing_that_was_answered_is_asked_again(server, kept, answered, monkeypatch):
    step = at(server)
    with monkeypatch.context() as patch:

        def interrupted(all_of_them, **_):
            list(zip(range(5), futures.as_completed(all_of_them), strict=False))
            raise KeyboardInterrupt

        patch.setattr(asking, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scores_of(step)
    assert 5 <= answered.total() < len(ROWS)
    kept()
    assert np.isfinite(scores_of(step)).all()
    assert set(answered.values()) == {1} and answered.total() == len(ROWS)


def test_a_killed_process_asks_only_for_its_last_moments_again(server, kept, answered, tmp_path):
    step = at(server)
    code = f"""
from hf_safefilter.cache import store
store.SECONDS = 0.0
import hf_safefilter.cache.lookup as lookup
lookup.SECONDS = 0.0
from hf_safefilter.scores.guard import GuardScore
from stand_in import safe_rows, unsafe_rows
rows = [*unsafe_rows(20), *safe_rows(20)]
known = dict(served="tiny-guard", top_logprobs=20, concurrency=4)
step = GuardScore("tiny-guard", "llama_guard_3", endpoint={server.address!r}, **known)
step({{name: [row[name] for row in rows] for name in rows[0]}})
"""
    server.fail(*[None] * 20)
    server.always = hangs(60)
    process = start(code, HF_SAFEFILTER_CACHE=os.environ["HF_SAFEFILTER_CACHE"], HF_SAFEFILTER_ROW_CACHE="on")
    wait_until(lambda: len(server.log) >= 21, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.always = None
    assert answered.total() == 20, "a piece of 16 rows is on the disk, four answers of the next one are not"
    assert np.isfinite(scores_of(step)).all()
    assert Counter(answered.values()) == {1: len(ROWS) - 4, 2: 4}


def test_the_log_of_a_resumed_call_counts_what_was_paid_now(server, kept, caplog):
    scores_of(at(server))
    with caplog.at_level(logging.INFO, logger="hf_safefilter"):
        scores_of(at(server), [*ROWS, {"prompt": "One", "response": "more"}])
    assert [line for line in caplog.messages if "gave 1 answers" in line]


def test_a_key_is_not_sent_in_plain_text_to_another_machine(monkeypatch):
    monkeypatch.setenv(endpoint.KEY, "secret-123")
    with pytest.raises(OptionError, match="would be sent to http://guard.example/v1 unencrypted") as raised:
        endpoint.client("http://guard.example/v1", 5.0, 1)
    assert "secret-123" not in str(raised.value)
    assert endpoint.client("https://guard.example/v1", 5.0, 1).address == "https://guard.example/v1"
