"""A recipe that names what people decided: the rows follow it, streamed or not, and the card says so."""

import json

import pytest
from datasets import Dataset

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.pipeline.purify import purify

WHEN = "2026-01-02T03:04:05+00:00"
LONGEST, SHORTEST = 19, 0


@pytest.fixture
def rows():
    return Dataset.from_list([{"prompt": f"Question {n}?", "response": "word " * (n + 1)} for n in range(20)])


@pytest.fixture
def log(rows, tmp_path):
    ids = [row_id(conversation) for conversation in as_conversations(rows)]
    log = DecisionLog(tmp_path / "decisions.jsonl")
    for at, word in ((LONGEST, "keep"), (SHORTEST, "drop")):
        log.append(RowDecision(ids[at], word, "ann", WHEN))
    return log


def recipe(log, **select):
    return {
        "data": {"license": "cc0-1.0", "source": "a test"}, "model": "toy", "methods": [{"name": "length"}],
        "select": {"drop_count": 3, "decisions": str(log.path)} | select,
    }  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_follow_what_people_decided(rows, log, streamed):
    source = rows.to_iterable_dataset() if streamed else rows
    done = purify(source, recipe(log, name_reviewers=True), anyway=True)
    kept = [int(row["prompt"].split()[1][:-1]) for row in done.kept]
    assert kept == [*range(1, 17), LONGEST]
    review = done.provenance.review
    assert (review.decided, review.kept, review.dropped, review.names) == (2, 1, 1, ["ann"])


def test_a_file_that_is_not_there_is_said_before_the_work(rows, tmp_path):
    with pytest.raises(MissingError, match="no file"):
        purify(rows, recipe(DecisionLog(tmp_path / "nowhere")))


def test_a_stream_is_not_changed(rows, log):
    stream = rows.to_iterable_dataset()
    with pytest.raises(OptionError, match="no refusals can be added to a stream"):
        purify(stream, recipe(log, add_refusals=3))
    log.append(RowDecision("0" * 32, "mask", "ann", WHEN, (1,)))
    with pytest.raises(OptionError, match="turns of a stream"):
        purify(stream, recipe(log))


def test_refusals_follow_the_kept_rows(rows, log):
    done = purify(rows, recipe(log, add_refusals=3), anyway=True)
    assert done.kept["added"][:] == [None] * 17 + ["refusal"] * 3 and done.provenance.added.rows == 3
    assert done.counts.kept == 17 and len(done.additions.rows) == 3
    with pytest.raises(OptionError, match="refusals belongs to add_refusals"):
        purify(rows, recipe(log, refusals="x.jsonl"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("word " * 40, "1 of 4 refusals could not be scored, or score like dropped rows"),
        ("", "a prompt and a response in each row"),
    ],
)
def test_refusals_of_others_must_pass_the_score(rows, log, tmp_path, bad, says):
    """What a file calls refusals is not believed: it is read like any row."""
    own = tmp_path / "refusals.jsonl"
    said = [{"prompt": f"harm {n}?", "response": f"No {n}."} for n in range(4)]
    own.write_text("".join(json.dumps(row) + "\n" for row in said))
    wanted = {"add_refusals": 4, "refusals": str(own), "refusals_license": "mit"}
    done = purify(rows, recipe(log, **wanted), anyway=True)
    assert done.kept["response"][-4:] == [row["response"] for row in said]
    said[2]["response"] = bad
    own.write_text("".join(json.dumps(row) + "\n" for row in said))
    with pytest.raises(DataError, match=says):
        purify(rows, recipe(log, **wanted), anyway=True)
