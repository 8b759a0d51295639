"""Decisions of people are labels: of several people the strictest, of one the last."""

import hashlib

import pytest

from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.errors import OptionError
from hf_safefilter.labeling import LabelRounds
from hf_safefilter.labeling.decided_labels import DecidedLabels

WHEN = "2026-01-02T03:04:05+00:00"


def log_of(path, decisions):
    log = DecisionLog(path / "decisions.jsonl")
    for row, word, who in decisions:
        log.append(RowDecision(row, word, who, WHEN, turns=(1,) if word == "mask" else ()))
    return log


def test_each_decision_is_the_label_that_it_implies(tmp_path):
    log = log_of(tmp_path, [("a", "drop", "ada"), ("b", "keep", "ada"), ("c", "mask", "ada"), ("d", "unsure", "ada")])
    labels = DecidedLabels.of(log)
    assert {row: given.label for row, given in labels.current.items()} == {
        "a": "unsafe", "b": "safe", "c": "unsafe", "d": "unsure"
    }  # fmt: skip
    assert labels.summary() == {
        "sha256": hashlib.sha256(log.path.read_bytes()).hexdigest(), "count": 4, "unsafe": 2, "safe": 1, "unsure": 1
    }  # fmt: skip
    assert set(labels.without_rows(["a"]).current) == {"b", "c", "d"}


def test_where_people_differ_the_strictest_counts_and_doubt_does_not(tmp_path):
    labels = DecidedLabels.of(log_of(tmp_path, [
        ("a", "keep", "ada"), ("a", "drop", "bob"), ("b", "unsure", "ada"), ("b", "keep", "bob"),
        ("c", "drop", "ada"), ("c", "keep", "ada"), ("d", "drop", "ada"), ("d", "withdrawn", "ada"),
    ]))  # fmt: skip
    assert {row: given.label for row, given in labels.current.items()} == {"a": "unsafe", "b": "safe", "c": "safe"}


def test_a_row_joins_the_references_where_all_say_the_same(tmp_path):
    log = DecisionLog(tmp_path / "decisions.jsonl")
    for row, word, who, mark in [
        ("a", "drop", "ada", True), ("b", "keep", "ada", True), ("b", "keep", "bob", False), ("c", "keep", "ada", True),
        ("c", "drop", "bob", False), ("d", "keep", "ada", True), ("d", "unsure", "bob", False),
        ("e", "drop", "ada", False),
    ]:  # fmt: skip
        log.append(RowDecision(row, word, who, WHEN, reference=mark))
    assert DecidedLabels.of(log).joining == {"a": "unsafe", "b": "safe"}


def test_rounds_take_decisions_as_they_take_answers_and_never_write_them(tmp_path):
    from labeling.test_rounds import LAYERS, rows_of
    from stand_in import StandIn, safe_rows, unsafe_rows

    from hf_safefilter.references import ReferenceIndex

    references = ReferenceIndex.build(unsafe_rows(20), safe_rows(15), StandIn(LAYERS), license="mit", source="tests")
    answers = [(place, place % 3 == 0) for place in (0, 1, 3, 5, 7, 9, 11)]
    log = log_of(tmp_path, [(f"id{place}", "drop" if unsafe else "keep", "ada") for place, unsafe in answers])
    decided = LabelRounds(rows_of(), references, LAYERS, DecidedLabels.of(log))
    answered = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    before = decided.scores()
    for place, unsafe in answers:
        answered.label(place, "unsafe" if unsafe else "safe", who="ada", when=WHEN)
    assert decided.labeled == answered.labeled == dict(answers)
    assert decided.scores().tolist() == answered.scores().tolist() and decided.next_rows(10) == answered.next_rows(10)
    assert decided.scores().tolist() == before.tolist()
    log.append(RowDecision("id2", "keep", "ada", WHEN))  # a decision made meanwhile is none of these
    assert 2 not in decided.labeled and decided.log.summary()["count"] == len(answers)
    later = LabelRounds(rows_of(), references, LAYERS, DecidedLabels.of(log))
    assert later.labeled[2] is False and later.scores().tolist() != before.tolist()
    assert not set(later.next_rows(10, besides=["id4", "elsewhere"])) & {4}
    others = DecidedLabels.of(log_of(tmp_path / "others", [("elsewhere", "keep", "ada")]))
    assert LabelRounds(rows_of(), references, LAYERS, others).labeled == {}
    with pytest.raises(OptionError, match="holds decisions"):
        decided.label(4, "safe", who="ada", when=WHEN)
