"""Decisions of people on rows: what is on disk, what they come to, and how far people agree."""

import copy
import json
import pickle

import numpy as np
import pytest

from hf_safefilter.decide.decision_log import DecisionLog, RowDecision
from hf_safefilter.decide.reviewer_agreement import Agreement
from hf_safefilter.decide.row_decisions import RowDecisions
from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError

WHEN = "2026-01-02T03:04:05+00:00"


def decision(row, word="drop", who="ann", turns=(), **more):
    return RowDecision(row, word, who, WHEN, turns, **more)


def logged(path, *decisions):
    log = DecisionLog(path)
    for entry in decisions:
        log.append(entry)
    return path


def test_each_decision_is_a_line_that_a_new_log_reads(tmp_path):
    path = tmp_path / "new" / "decisions.jsonl"
    first, second = decision("a", threshold=0.5, score=0.25, note="fine"), decision("b", "mask", turns=(1, 3))
    logged(path, first, second)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "row_id": "a", "decision": "drop", "who": "ann", "when": WHEN, "turns": [],
        "threshold": 0.5, "score": 0.25, "note": "fine", "reference": False,
    }  # fmt: skip
    assert DecisionLog(path).current == {("a", "ann"): first, ("b", "ann"): second}


def test_the_last_word_of_each_person_counts(tmp_path):
    path = logged(
        tmp_path / "d",
        decision("a"), decision("a", "keep", "bob"), decision("a", "keep"), decision("b"), decision("b", "withdrawn"),
    )  # fmt: skip
    assert {key: entry.decision for key, entry in DecisionLog(path).current.items()} == {
        ("a", "bob"): "keep",
        ("a", "ann"): "keep",
    }


@pytest.mark.parametrize(
    "bad", [{"decision": "perhaps"}, {"decision": "mask"}, {"turns": [1]}, {"decision": "mask", "turns": [-1]},
            {"decision": "mask", "turns": "1"}, {"who": 3}, {"row_id": None}]
)  # fmt: skip
def test_a_line_that_is_no_decision_is_named(tmp_path, bad):
    path = logged(tmp_path / "d", decision("a"))
    line = {"row_id": "b", "decision": "drop", "who": "ann", "when": WHEN} | bad
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    with pytest.raises(IntegrityError, match="line 2 of .* is no decision"):
        DecisionLog(path)


def test_only_decisions_are_written(tmp_path):
    log = DecisionLog(tmp_path / "d")
    with pytest.raises(OptionError, match="perhaps"):
        log.append(decision("a", "perhaps"))
    with pytest.raises(ValueError):
        log.append(decision("a", "mask"))
    assert not log.path.exists()


@pytest.mark.parametrize(
    ("words", "ruling", "turns"),
    [
        (["keep"], "keep", ()), (["keep", "keep"], "keep", ()), (["keep", "drop"], "drop", ()),
        (["keep", "mask"], "mask", (3,)), (["mask", "mask"], "mask", (3, 5)), (["mask", "drop", "keep"], "drop", ()),
        (["unsure", "keep"], "keep", ()),
    ],
)  # fmt: skip
def test_where_people_differ_the_strictest_counts(tmp_path, words, ruling, turns):
    people = [
        decision("a", word, f"person {at}", turns=(3 + 2 * at,) if word == "mask" else ())
        for at, word in enumerate(words)
    ]
    if ruling == "mask" and words[0] == "keep":
        people[1] = decision("a", "mask", "person 1", turns=(3,))
    assert RowDecisions.read(logged(tmp_path / "d", *people)).rulings == (("a", ruling, turns),)


def test_who_is_unsure_decides_nothing(tmp_path):
    with pytest.raises(DataError, match="decides on no row"):
        RowDecisions.read(logged(tmp_path / "d", decision("a", "unsure")))
    with pytest.raises(MissingError, match="no file"):
        RowDecisions.read(tmp_path / "nowhere")


def test_rulings_by_row_and_their_digest(tmp_path):
    read = RowDecisions.read(logged(tmp_path / "d", decision("b"), decision("a", "mask", turns=(1,))))
    assert read.of_rows(["x", "a", "b", "b"]).tolist() == ["", "mask", "drop", "drop"]
    assert (read.masked_turns("a"), read.masked_turns("b"), read.masked_turns("x")) == ({1}, set(), set())
    other_order = RowDecisions.read(logged(tmp_path / "e", decision("a", "mask", turns=(1,)), decision("b")))
    assert (other_order.sha256, hash(other_order), pickle.dumps(other_order)) == (
        read.sha256, hash(read), pickle.dumps(read),
    )  # fmt: skip
    changed = RowDecisions.read(logged(tmp_path / "f", decision("a", "mask", turns=(3,)), decision("b")))
    assert changed.sha256 != read.sha256 and changed != read
    assert copy.deepcopy(read) == read == RowDecisions.from_json(json.loads(json.dumps(read.to_json())))


@pytest.mark.parametrize(
    "change", [{"sha256": "0"}, {"rulings": []}, {"rulings": [["a", "perhaps", []]]}, {"agreement": 3}]
)
def test_altered_values_are_refused(tmp_path, change):
    values = RowDecisions.read(logged(tmp_path / "d", decision("a"))).to_json()
    with pytest.raises(IntegrityError, match="damaged"):
        RowDecisions.from_json(values | change)


def test_agreement_is_that_of_the_published_example():
    # Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section B: two observers, ten units
    first, second = "0100000010", "1110010000"
    people = [decision(str(at), "drop" if value == "1" else "keep", who)
              for who, values in (("ann", first), ("bob", second)) for at, value in enumerate(values)]  # fmt: skip
    agreement = Agreement.of([*people, decision("10"), decision("0", "unsure", "cy")])
    assert (agreement.rows, agreement.agreed) == (10, 6)
    assert agreement.alpha == pytest.approx(0.095, abs=5e-4)


def test_agreement_is_that_of_a_count_over_all_pairs():
    draw = np.random.default_rng(3)
    words = np.array(["keep", "drop", "mask"])
    people = [
        RowDecision(str(row), str(draw.choice(words, p=[0.6, 0.3, 0.1])), f"p{who}", WHEN, ())
        for row in range(40)
        for who in range(draw.integers(1, 5))
    ]
    by_row = {}
    for entry in people:
        by_row.setdefault(entry.row_id, []).append(entry.decision)
    several = [values for values in by_row.values() if len(values) > 1]
    every = [value for values in several for value in values]
    observed = sum(
        sum(a != b for i, a in enumerate(values) for j, b in enumerate(values) if i != j) / (len(values) - 1)
        for values in several
    ) / len(every)
    pairs = [a != b for i, a in enumerate(every) for j, b in enumerate(every) if i != j]
    assert Agreement.of(people).alpha == pytest.approx(1 - observed / np.mean(pairs))


def test_without_rows_of_several_people_there_is_no_agreement():
    assert Agreement.of([decision("a"), decision("b")]) == Agreement(0, 0, None)
    assert Agreement.of([decision("a"), decision("a", who="bob")]) == Agreement(1, 1, None)
