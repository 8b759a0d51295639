"""What was answered is on disk: after a kill, and after an answer that is taken back."""

import hashlib
import json

import pytest

from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.labeling.label_log import Answer, LabelLog

WHEN = "2026-01-02T03:04:05+00:00"


def answer(row, label="unsafe", number=1):
    return Answer(row, label, "me", WHEN, number)


def test_each_answer_is_one_line_that_a_new_log_reads(tmp_path):
    path = tmp_path / "new" / "labels.jsonl"
    log = LabelLog(path)
    assert log.current == {} and not path.exists()
    log.append(answer("a"))
    log.append(answer("b", "safe"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"row_id": "a", "label": "unsafe", "who": "me", "when": WHEN, "round": 1}
    assert LabelLog(path).current == {"a": answer("a"), "b": answer("b", "safe")}


def test_the_last_answer_on_a_row_counts_and_one_may_be_withdrawn(tmp_path):
    log = LabelLog(tmp_path / "labels.jsonl")
    for row, label in [("a", "unsafe"), ("b", "safe"), ("a", "safe"), ("b", "withdrawn"), ("c", "unsure")]:
        log.append(answer(row, label))
    assert {row: given.label for row, given in log.current.items()} == {"a": "safe", "c": "unsure"}
    assert LabelLog(log.path).current == log.current
    summary = log.summary()
    assert summary == {
        "sha256": hashlib.sha256(log.path.read_bytes()).hexdigest(), "count": 2, "unsafe": 0, "safe": 1, "unsure": 1
    }  # fmt: skip


@pytest.mark.parametrize("torn", [b'{"row_id": "b", "la', b'{"row_id": "\xff', b'{"row_id": "b", "label": "safe"}'])
def test_a_line_that_was_being_written_is_left_out_and_cut_off(tmp_path, torn):
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append(answer("a"))
    digest = log.summary()["sha256"]
    with log.path.open("ab") as stream:
        stream.write(torn)
    again = LabelLog(log.path)
    assert list(again.current) == ["a"] and again.summary()["sha256"] == digest
    again.append(answer("c"))
    assert list(LabelLog(log.path).current) == ["a", "c"]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "no json", json.dumps({"row_id": "b", "label": "bad", "who": "", "when": "", "round": 1})]
)
def test_a_damaged_line_is_named(tmp_path, line):
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append(answer("a"))
    with log.path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(IntegrityError, match="line 2"):
        LabelLog(log.path)


def test_only_labels_are_written(tmp_path):
    log = LabelLog(tmp_path / "labels.jsonl")
    with pytest.raises(OptionError, match="label"):
        log.append(answer("a", "perhaps"))
    assert not log.path.exists()
