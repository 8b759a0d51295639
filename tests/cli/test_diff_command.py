"""Decisions of people, the difference to the decision before, and two selections side by side, from the shell."""

import json

import pytest
from datasets import Dataset, load_from_disk

from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.publish.drop_reasons import row_ids
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores.controls import LengthScore

WHEN = "2026-01-02T03:04:05+00:00"
CARD = ("--license", "mit", "--source", "a test", "--anyway")


@pytest.fixture
def scored(tmp_path):
    rows = Dataset.from_list([{"prompt": f"{n}?", "response": "a" * n} for n in range(1, 41)])
    save_rows(rows.map(LengthScore(), batched=True), tmp_path / "scored", [LengthScore()], name="rows", revision="none")
    return tmp_path / "scored"


@pytest.fixture
def log(scored, tmp_path):
    ids = row_ids(load_from_disk(scored))
    log = DecisionLog(tmp_path / "decisions.jsonl")
    log.append(RowDecision(ids[39], "keep", "ann", WHEN))
    log.append(RowDecision(ids[0], "drop", "ann", WHEN))
    return log.path


def select(call, scored, output, *options):
    words = ("--by", "length_score", *options, "--output", output, "--anyway")
    code, out, err = call("--format", "json", "select", scored, *words)
    assert code == 0, err
    return json.loads(out), err


def moved(call, *sides):
    code, out, err = call("--format", "json", "diff", *sides)
    assert code == 0, err
    body = json.loads(out)
    return body, {(row["row_id"], row["change"]) for row in body["rows"]}


def test_what_people_decided_goes_before_the_score(scored, log, call, tmp_path):
    facts, _ = select(call, scored, tmp_path / "decided", "--drop-count", 4, "--decisions", log)
    assert facts["by people"] == {"decided": 2, "kept": 1, "dropped": 1, "masked": 0, "rows": 0, "agreed": 0}
    kept = load_from_disk(tmp_path / "decided" / "kept")
    assert {len(text) for text in kept["response"]} == {*range(2, 37), 40}
    code, _, err = call("card", tmp_path / "decided", *CARD, "--output", tmp_path / "out")
    assert code == 0, err
    assert "**Decided by people:** on 2 rows by 1 person" in (tmp_path / "out" / "README.md").read_text()


def test_a_new_threshold_is_compared_before_it_is_written(scored, call, tmp_path):
    out = tmp_path / "decided"
    _, err = select(call, scored, out, "--drop-count", 4)
    assert "compared with" not in err
    before = (out / "decision.json").read_bytes()
    facts, err = select(call, scored, out, "--drop-count", 6, "--preview")
    assert "compared with the decision in" in err and "2 rows go out, 38 fare alike" in err
    assert (facts["out"], facts["in"]) == (2, 0) and {row["change"] for row in facts["rows"]} == {"out"}
    assert (out / "decision.json").read_bytes() == before
    _, err = select(call, scored, out, "--drop-count", 3)
    assert "1 rows come in, 39 fare alike" in err and (out / "decision.json").read_bytes() != before


def test_a_preview_needs_a_decision(scored, call, tmp_path):
    words = ("--by", "length_score", "--drop-count", 4, "--preview", "--output", tmp_path / "new")
    code, _, err = call("select", scored, *words)
    assert code == 1 and "holds no decision to compare with" in err and not (tmp_path / "new").exists()


def test_two_selections_side_by_side(scored, log, call, tmp_path):
    ids = row_ids(load_from_disk(scored))
    few, people = tmp_path / "few", tmp_path / "people"
    select(call, scored, few, "--drop-count", 2)
    select(call, scored, people, "--drop-count", 4, "--decisions", log)
    body, rows = moved(call, few, people)
    expected = {(ids[39], "in"), (ids[0], "out"), (ids[37], "out"), (ids[36], "out")}
    assert rows == expected and (body["alike"], body["new"], body["gone"]) == (36, 0, 0)
    assert set(body["facts"]) == {"threshold", "rule", "decisions of people"}
    first = next(row for row in body["rows"] if row["row_id"] == ids[39])
    assert first["before"] == {"score": 40.0, "reason": "score at or above the threshold"}
    assert first["after"]["reason"] == ""
    # what is published of each is compared alike, but that kept rows have no scores there
    published = []
    for folder in (few, people):
        published.append(tmp_path / f"{folder.name} out")
        code, _, err = call("card", folder, *CARD, "--output", published[-1])
        assert code == 0, err
    assert moved(call, *published)[1] == moved(call, few, published[1])[1] == expected
    assert moved(call, people, published[1])[1] == set()


def test_rows_of_one_side_alone_are_new_or_gone(scored, call, tmp_path):
    more = Dataset.from_list([{"prompt": f"{n}?", "response": "a" * n} for n in range(3, 43)])
    save_rows(more.map(LengthScore(), batched=True), tmp_path / "more", [LengthScore()], name="more", revision="none")
    select(call, scored, tmp_path / "one", "--drop-count", 4)
    select(call, tmp_path / "more", tmp_path / "two", "--drop-count", 4)
    body, _ = moved(call, tmp_path / "one", tmp_path / "two")
    assert (body["new"], body["gone"], body["in"], body["out"]) == (2, 2, 2, 0)
    assert body["facts"]["source"] == ["rows", "more"]


def test_a_person_sees_tables(scored, log, call, tmp_path):
    select(call, scored, tmp_path / "one", "--drop-count", 2)
    select(call, scored, tmp_path / "two", "--drop-count", 2, "--decisions", log)
    code, out, _ = call("diff", tmp_path / "one", tmp_path / "two")
    assert code == 0 and "Rows (2 of 2)" in out and "1 rows come in, 1 rows go out, 38 fare alike" in out


@pytest.mark.parametrize("name", ["nowhere", "plain"])
def test_what_holds_no_selection_is_said(scored, call, tmp_path, name):
    select(call, scored, tmp_path / "one", "--drop-count", 2)
    (tmp_path / "plain").mkdir()
    code, _, err = call("diff", tmp_path / "one", tmp_path / name)
    assert code == 1 and ("holds no selection" if name == "plain" else "cannot be had from the Hub") in err


@pytest.mark.parametrize("content", ["", "{}\n", "words"])
def test_a_file_that_holds_no_decisions_is_said(scored, call, tmp_path, content):
    (tmp_path / "log").write_text(content)
    words = ("--by", "length_score", "--drop-count", 4, "--decisions", tmp_path / "log", "--output", tmp_path / "x")
    code, _, err = call("select", scored, *words)
    assert code == 1 and ("decides on no row" if not content else "is no decision") in err


def test_refusals_are_added_and_published(scored, call, tmp_path):
    facts, _ = select(call, scored, tmp_path / "decided", "--drop-count", 4, "--add-refusals", 6)
    assert (facts["kept"], facts["added"]) == (36, 6)
    kept = load_from_disk(tmp_path / "decided" / "kept")
    assert kept["added"][:] == [None] * 36 + ["refusal"] * 6
    code, _, err = call("card", tmp_path / "decided", *CARD, "--output", tmp_path / "out")
    assert code == 0, err
    assert "**Added:** 6 refusals" in (tmp_path / "out" / "README.md").read_text()
    code, out, _ = call("--format", "json", "verify", tmp_path / "out", "--source", scored)
    assert {line["result"] for line in json.loads(out)["lines"]} == {"pass"}


def test_refusals_without_a_number_are_refused(scored, call, tmp_path):
    words = ("--by", "length_score", "--drop-count", 4, "--refusals", "x.jsonl", "--output", tmp_path / "x")
    code, _, err = call("select", scored, *words)
    assert code == 2 and "no number of refusals" in err and "--add-refusals" in err


@pytest.mark.parametrize("file", ["dropped.parquet", "provenance.json", "data/train-00000-of-00001.parquet"])
@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"words")])
def test_a_published_folder_that_was_altered_is_not_compared(scored, call, tmp_path, file, change):
    select(call, scored, tmp_path / "one", "--drop-count", 2)
    code, _, err = call("card", tmp_path / "one", *CARD, "--output", tmp_path / "out")
    assert code == 0, err
    change(tmp_path / "out" / file)
    code, _, err = call("diff", tmp_path / "one", tmp_path / "out")
    assert code == 1 and any(
        words in err
        for words in ("is not the file that", "is missing, which", "not a provenance", "holds no selection")
    )


def test_a_record_of_another_score_is_not_compared(scored, call, tmp_path):
    select(call, scored, tmp_path / "one", "--drop-count", 2)
    call("card", tmp_path / "one", *CARD, "--output", tmp_path / "out")
    record = tmp_path / "out" / "provenance.json"
    record.write_text(record.read_text().replace('"column": "length_score"', '"column": "other_score"'))
    code, _, err = call("diff", tmp_path / "one", tmp_path / "out")
    assert code == 1 and "does not hold what its record states" in err
