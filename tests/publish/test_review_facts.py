"""Decisions of people in what is published: stated, listed without names, and checked by a stranger."""

import json
import shutil

import pytest
from altered_folders import described
from datasets import Dataset

from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.decide.row_decisions import RowDecisions
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.errors import DataError, PublishError
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.card import render
from hf_safefilter.publish.drop_reasons import BY_PEOPLE, REACHED, row_ids
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.provenance import Provenance

WHEN = "2026-01-02T03:04:05+00:00"
FACTS = {"license": "cc0-1.0", "source": "a test"}


@pytest.fixture(scope="module")
def log(scored, tmp_path_factory):
    """Row 59 is dropped by its score and kept by people, row 0 is the reverse; on row 3 two people differ."""
    ids = row_ids(scored)
    log = DecisionLog(tmp_path_factory.mktemp("log") / "decisions.jsonl")
    for at, word, who in [
        (59, "keep", "ann"), (59, "keep", "bob"), (0, "drop", "ann"), (58, "drop", "ann"),
        (3, "keep", "ann"), (3, "unsure", "cy"), (4, "keep", "bob"), (4, "drop", "ann"),
    ]:  # fmt: skip
        log.append(RowDecision(ids[at], word, who, WHEN, note="a note"))
    return log.path


@pytest.fixture(scope="module")
def made(scored, log, steps, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    decision = IsSafe("length_score", 200.0, decisions=log)
    write_folder(out, scored, decision, gather(scored, decision, steps=steps, anyway=True, **FACTS))
    return out


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture(scope="module")
def source(scored):
    return scored.remove_columns(["random_score", "length_score"])


def results(folder, source):
    return {line.check: line.result for line in Verification(folder, source, sample=None).lines()}


def test_record_and_card_say_how_the_score_was_overruled(made, scored):
    provenance = Provenance.from_json((made / "provenance.json").read_text())
    review, counts = provenance.review, provenance.counts
    assert (review.decided, review.kept, review.dropped, review.masked) == (5, 1, 2, 0)
    assert (review.reviewers, review.names, review.rows, review.agreed) == (3, [], 2, 1)
    dangerous = sum(score >= 200 for score in scored["length_score"])
    assert counts.by_reason == {REACHED: dangerous - 1, BY_PEOPLE: 2}
    assert counts.kept == 60 - (dangerous - 1) - 2 and counts.changed == 0
    card = (made / "README.md").read_text()
    assert "on 5 rows by 3 people, 3 of them against the score: kept 1, dropped 2" in card
    assert "on 1 alike" in card and "ann" not in card


def test_names_and_notes_are_not_published_unless_asked_for(made, scored, log, steps):
    for path in made.rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in (b'"ann"', b"a note"))
    named = gather(scored, IsSafe("length_score", 200.0, decisions=log), steps=steps, name_reviewers=True, **FACTS)
    assert named.review.names == ["ann", "bob", "cy"]


def test_a_stranger_finds_the_folder_as_it_was_made(folder, source):
    assert set(results(folder, source).values()) == {"pass"}


@pytest.mark.parametrize("change", ["altered", "shortened", "removed"])
def test_an_altered_decision_is_named(folder, source, change):
    path = folder / "decisions.json"
    rulings = json.loads(path.read_text())
    if change == "removed":
        path.unlink()
    else:
        path.write_text(
            json.dumps(rulings[1:] if change == "shortened" else [[*rulings[0][:1], "keep", []], *rulings[1:]])
        )
    failed = results(folder, source)
    assert (failed["files"], failed["decision"]) == ("fail", "fail")
    if change != "removed":
        described(folder)
        assert results(folder, source)["decision"] == "fail"


def test_decisions_that_nobody_made_do_not_excuse_a_kept_row(scored, steps, source, tmp_path):
    plain = IsSafe("length_score", 200.0)
    out = tmp_path / "out"
    write_folder(out, scored, plain, gather(scored, plain, steps=steps, anyway=True, **FACTS))
    (out / "decisions.json").write_text(json.dumps([[row_ids(scored)[59], "keep", []]]))
    described(out)
    assert results(out, source)["decision"] == "fail"


def test_rulings_against_what_was_kept_fail(folder, source, scored):
    """Whoever rewrites decisions, their digest and the card too: a row that they drop must not be there."""
    ids = row_ids(scored)
    rulings = json.loads((folder / "decisions.json").read_text())
    for extra in ([ids[5], "drop", []], [ids[57], "keep", []]):
        forged = [*rulings, extra]
        (folder / "decisions.json").write_text(json.dumps(forged))
        record = json.loads((folder / "provenance.json").read_text())
        record["review"]["sha256"] = RowDecisions(
            tuple((row, word, tuple(turns)) for row, word, turns in forged)
        ).sha256
        (folder / "provenance.json").write_text(json.dumps(record))
        described(folder)
        assert results(folder, source)["decision"] == "fail"


def test_decisions_on_other_rows_are_refused(steps, log):
    rows = Dataset.from_list([{"prompt": f"{n}?", "response": "a" * n} for n in range(1, 9)])
    for step in steps:
        rows = rows.map(step, batched=True)
    with pytest.raises(DataError, match="on none of these rows"):
        gather(rows, IsSafe("length_score", 5.0, decisions=log), steps=steps, **FACTS)


def test_masked_rows_are_counted_as_changed(steps, tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    said = [[{"role": role, "content": content * n} for role, content in turns] for n in range(1, 9)]
    rows = Dataset.from_dict({"messages": said})
    for step in steps:
        rows = rows.map(step, batched=True)
    log = DecisionLog(tmp_path / "log")
    log.append(RowDecision(row_ids(rows)[2], "mask", "ann", WHEN, (3,)))
    decision = IsSafe("length_score", float(rows["length_score"][6]), decisions=log.path)
    provenance = gather(rows, decision, steps=steps, anyway=True, **FACTS)
    assert (provenance.counts.kept, provenance.counts.changed, provenance.review.masked) == (6, 1, 1)
    write_folder(tmp_path / "out", rows, decision, provenance)
    found = results(tmp_path / "out", rows.remove_columns(["random_score", "length_score"]))
    assert set(found.values()) == {"pass"}


def test_an_effect_of_other_decisions_is_not_published(scored, log, steps):
    effect = {"column": "length_score", "threshold_hex": (200.0).hex(), "rows": 60, "decisions": None}
    with pytest.raises(PublishError, match="its decisions differ"):
        gather(scored, IsSafe("length_score", 200.0, decisions=log), steps=steps, effect=effect, **FACTS)


def test_a_row_that_could_not_be_scored_is_kept_by_people_alone_and_the_card_says_so(steps, tmp_path):
    rows = Dataset.from_list([{"prompt": f"{n}?", "response": "a" * n} for n in range(9)])  # one without an answer
    for step in steps:
        rows = rows.map(step, batched=True)
    ids = row_ids(rows)
    log = DecisionLog(tmp_path / "log")
    for at, word in ((0, "keep"), (8, "keep"), (1, "keep")):
        log.append(RowDecision(ids[at], word, "ann", WHEN))
    decision = IsSafe("length_score", float(rows["length_score"][7]), decisions=log.path)
    provenance = gather(rows, decision, steps=steps, anyway=True, **FACTS)
    assert (provenance.review.kept, provenance.review.unscored, provenance.counts.kept) == (2, 1, 8)
    card = render(provenance, None)
    assert (
        "was not kept, but for 1 rows that people kept." in card and "kept 2 (1 of which could not be scored)" in card
    )
    plain = gather(rows, IsSafe("length_score", decision.threshold), steps=steps, anyway=True, **FACTS)
    assert "What could not be scored was not kept." in render(plain, None)
