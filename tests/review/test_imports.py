"""Decisions that were made elsewhere come into the log once, and only if they fit the rows."""

import json

import pytest

from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.errors import IntegrityError, MissingError, OptionError
from hf_safefilter.review.exports import write_argilla
from hf_safefilter.review.imports import read_decisions
from hf_safefilter.review.review import Review

WHEN = "2026-01-02T03:04:05+00:00"


def other_log(path, decisions):
    log = DecisionLog(path)
    for decision in decisions:
        log.append(decision)
    return log


def test_another_log_is_taken_once_with_its_times_and_the_last_word_of_each(review, tmp_path):
    ids = review.rows.ids
    log = other_log(tmp_path / "bob.jsonl", [
        RowDecision(ids[3], "keep", "bob", WHEN), RowDecision(ids[3], "drop", "bob", WHEN, score=0.5, reference=True),
        RowDecision(ids[0], "mask", "bob", WHEN, turns=(1,), note="why"), RowDecision("elsewhere", "keep", "bob", WHEN),
        RowDecision(ids[4], "keep", "bob", WHEN), RowDecision(ids[4], "withdrawn", "bob", WHEN),
    ])  # fmt: skip
    review.decide(3, {"decision": "keep", "who": "ada"})
    assert review.take(read_decisions(log.path).decisions) == {"taken": 2, "known": 1, "of_other_rows": 1, "older": 0}
    assert {(d.who, d.decision, d.when == WHEN, d.reference) for d in review.decisions_on(3)} == {
        ("ada", "keep", False, False), ("bob", "drop", True, True)
    }  # fmt: skip
    (masked,) = review.decisions_on(0)
    assert (masked.turns, masked.note, masked.score) == ((1,), "why", review.rows.scores[0])
    size = review.log.path.stat().st_size
    assert review.take(read_decisions(log.path).decisions) == {"taken": 0, "known": 3, "of_other_rows": 1, "older": 0}
    assert review.log.path.stat().st_size == size and not review.decisions_on(4)
    again = DecisionLog(review.log.path).current
    assert {key: decision.decision for key, decision in again.items()} == {
        (ids[3], "ada"): "keep", (ids[3], "bob"): "drop", (ids[0], "bob"): "mask"
    }  # fmt: skip


def test_records_of_argilla_come_back_as_they_went(review, scored, tmp_path):
    for place, word in ((3, "keep"), (4, "drop"), (5, "unsure")):
        review.decide(place, {"decision": word, "who": "ada"})
    review.decide(0, {"decision": "mask", "who": "ada", "turns": [1]})
    review.decide(3, {"decision": "drop", "who": "somebody else"})
    write_argilla(review, tmp_path / "records.json", text=True)
    other = Review.of(scored[0], tmp_path / "new.jsonl", by="largest_rank_score")
    imported = read_decisions(tmp_path / "records.json", ["ada"])
    assert imported.without_turns == 1
    assert other.take(imported.decisions)["taken"] == 4
    assert {d.who: d.decision for d in other.decisions_on(3)} == {"ada": "keep"} | {
        name: "drop" for name in other.overview()["reviewers"] if name.startswith("argilla ")
    }
    assert [d.decision for place in (4, 5) for d in other.decisions_on(place)] == ["drop", "unsure"]
    assert all(d.when > "2026" for d in other.decisions_on(4))


def test_records_come_as_lines_and_as_the_array_that_argilla_writes(review, tmp_path):
    """With responses as its `to_json` has them: no status, and ids that it has given to people itself."""
    answered = [{"value": "drop", "user_id": "0b5c1a6e-0000-4000-8000-000000000001"}]
    records = [
        {"id": f"{place}", "fields": {}, "metadata": {"row_id": review.rows.ids[place]}, "suggestions": {},
         "responses": {"decision": answered} if place else {}, "vectors": {}, "status": "pending", "_server_id": "1"}
        for place in range(3)
    ]  # fmt: skip
    (tmp_path / "array.json").write_text(json.dumps(records))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    array, lines = (read_decisions(tmp_path / name) for name in ("array.json", "lines.jsonl"))
    assert array == lines and [decision.row_id for decision in array.decisions] == review.rows.ids[1:3]
    assert {decision.who for decision in array.decisions} == {f"argilla {answered[0]['user_id']}"}
    assert review.take(array.decisions)["taken"] == 2


def test_the_classes_of_argilla_read_the_export_and_write_what_is_imported(review, tmp_path):
    argilla = pytest.importorskip("argilla", reason="it is held against the real classes: pip install argilla requests")
    review.decide(3, {"decision": "keep", "who": "ada"})
    write_argilla(review, tmp_path / "records.json", text=True)
    records = [argilla.Record.from_dict(body) for body in json.loads((tmp_path / "records.json").read_text())]
    (response,) = records[3].responses
    assert (response.value, response.status.value, records[3].suggestions["decision"].agent) == (
        "keep", "submitted", "largest_rank_score"
    )  # fmt: skip
    records[4].responses.add(argilla.Response("decision", "drop", user_id=response.user_id, status="submitted"))
    (tmp_path / "answers.json").write_text(json.dumps([record.to_dict() for record in records]))
    found = read_decisions(tmp_path / "answers.json", ["ada"]).decisions
    assert {(decision.row_id, decision.who, decision.decision) for decision in found} == {
        (review.rows.ids[3], "ada", "keep"), (review.rows.ids[4], "ada", "drop")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"metadata": {"row_id"', "is no whole array"),
        ("[" * 100_000, "is no whole array"),
        ('[{"responses": {}, "metadata": {"row_id": "a"}}, []]', "record 2 of"),
        ('[{"responses": {}, "metadata": {}}]', "record 1 of"),
    ],
)
def test_an_array_of_something_else_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(IntegrityError, match=message):
        read_decisions(tmp_path / "a.json")


OTHERS = [
    "[]",
    "no json",
    "{}",
    '{"responses": {"decision": [{"value": "burn", "user_id": "a"}]}, "metadata": {"row_id": "a"}}',
    '{"responses": [], "metadata": {"row_id": "a"}}',
    '{"responses": {"decision": [{"value": "keep"}]}, "metadata": {}}',
    "[" * 100_000,
]


def test_what_is_known_is_never_replaced_by_something_older_or_without_a_time(review, tmp_path):
    ids = review.rows.ids
    review.decide(3, {"decision": "drop", "who": "bob", "note": "mine", "reference": True})
    review.decide(4, {"decision": "keep", "who": "bob"})
    write_argilla(review, tmp_path / "records.json", text=False)
    review.decide(4, {"decision": "drop", "who": "bob"})
    found = review.take(read_decisions(tmp_path / "records.json", ["bob"]).decisions)
    assert found == {"taken": 0, "known": 1, "of_other_rows": 0, "older": 1}
    log = other_log(
        tmp_path / "bob.jsonl", [RowDecision(ids[3], "keep", "bob", WHEN), RowDecision(ids[4], "keep", "bob", "?")]
    )
    assert review.take(read_decisions(log.path).decisions)["older"] == 2
    (kept,) = review.decisions_on(3)
    assert (kept.decision, kept.note, kept.reference) == ("drop", "mine", True)
    log.append(RowDecision(ids[3], "withdrawn", "bob", "2099-01-01T00:00:00Z"))
    assert review.take(read_decisions(log.path).decisions)["taken"] == 1 and not review.decisions_on(3)


def test_annotators_stay_apart_and_a_line_that_was_being_written_is_left_out(review, tmp_path):
    record = {"metadata": {"row_id": review.rows.ids[3]}, "responses": {"decision": [
        {"value": "keep", "user_id": name} for name in ("annotator-1", "annotator-2", "a" * 70 + "1", "a" * 70 + "2")
    ]}}  # fmt: skip
    (tmp_path / "records.json").write_text(json.dumps(record) + "\n" + '{"metadata": {"row')
    assert review.take(read_decisions(tmp_path / "records.json").decisions)["taken"] == 4
    assert len({decision.who for decision in review.decisions_on(3)}) == 4


@pytest.mark.parametrize("values", [{"threshold": "high"}, {"threshold": 10**400}, {"score": [1]}, {"when": "9" * 65}])
def test_numbers_and_times_of_another_kind_are_no_decision(tmp_path, values):
    line = {"row_id": "a", "decision": "keep", "who": "b", "when": WHEN} | values
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(IntegrityError, match="line 1"):
        read_decisions(tmp_path / "a.jsonl")


@pytest.mark.parametrize("line", OTHERS)
def test_a_line_of_another_kind_is_named(tmp_path, line):
    good = json.dumps({"row_id": "a", "decision": "keep", "who": "b", "when": WHEN})
    (tmp_path / "a.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(IntegrityError, match="line 2 of .*a.jsonl is no decision, and no record"):
        read_decisions(tmp_path / "a.jsonl")


def test_what_does_not_fit_its_row_is_refused(review, tmp_path):
    log = other_log(tmp_path / "bob.jsonl", [RowDecision(review.rows.ids[3], "mask", "bob", WHEN, turns=(9,))])
    with pytest.raises(OptionError, match="turns 0 to 1"):
        review.take(read_decisions(log.path).decisions)
    with pytest.raises(MissingError, match="there is no file"):
        read_decisions(tmp_path / "none.jsonl")


def test_the_command_imports_and_serves_nothing(review, scored, call, tmp_path):
    log = other_log(tmp_path / "bob.jsonl", [RowDecision(review.rows.ids[3], "drop", "bob", WHEN)])
    words = ["review", scored[0], "--by", "probe_score", "--decisions", tmp_path / "mine.jsonl", "--import", log.path]
    code, out, err = call("--format", "json", *words)
    assert code == 0, err
    assert {name: json.loads(out)[name] for name in ("taken", "known", "of_other_rows", "without_turns")} == {
        "taken": 1, "known": 0, "of_other_rows": 0, "without_turns": 0
    }  # fmt: skip
    assert len(DecisionLog(tmp_path / "mine.jsonl").current) == 1
