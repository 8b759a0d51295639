"""hf-safefilter seal: fit, score and report in one go; the same command again goes on, or just reports."""

import json

import numpy as np
import pytest
from datasets import load_from_disk

from hf_safefilter.scores.seal import SealSelector
from hf_safefilter.scores.seal.checkpoint import Checkpoints
from hf_safefilter.toy.corpus import heldout_rows, mixed_rows

QUICK = ("--model", "toy", "--epochs", "1", "--batch-size", "8", "--learning-rate", "1e-4", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = [*mixed_rows(24, 0.25, 3), {"prompt": "Hi", "response": "", "label": "safe", "category": "empty"}]
    sides = {"rows": rows, "safe": [*heldout_rows("harmful", 8), *heldout_rows("benign", 8)]}
    for name, side in sides.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in side))
    return folder


def test_it_explains_itself_with_an_example(call):
    code, out, _ = call("seal", "--help")
    assert code == 0 and "hf-safefilter seal rows.jsonl trusted.jsonl" in " ".join(out.split())


def test_from_rows_to_a_decision(call, files, tmp_path):
    output = tmp_path / "sealed"
    code, out, err = call("--format", "json", "seal", files / "rows.jsonl", files / "safe.jsonl", *QUICK, "-o", output)
    assert code == 0, err
    report = json.loads(out)["report"]
    assert report["rows"] == {"rows": 25, "duplicates": 0, "unscorable: empty_response": 1}
    assert (report["safe_rows"]["rows"], report["fitted"], len(report["epochs"])) == (16, 24, 1)
    assert json.loads((output / "report.json").read_text()) == report
    scored = load_from_disk(output / "scored")
    assert np.isfinite(scored["seal_score"][:24]).all()
    assert scored["seal_unscored"][:] == [""] * 24 + ["empty_response"]
    assert SealSelector.load(output / "selector").digest == report["digest"]
    words = ("--by", "seal_score", "--drop-fraction", "0.25")
    code, out, err = call("--format", "json", "select", output / "scored", *words, "-o", tmp_path / "decided")
    assert code == 0 and (json.loads(out)["kept"], json.loads(out)["dropped"]) == (18, 7), err
    words = ("--license", "cc0-1.0", "--source", "a test")
    code, _, err = call("card", tmp_path / "decided", *words, "-o", tmp_path / "out")
    assert code == 0 and report["digest"] in (tmp_path / "out" / "README.md").read_text(), err


def test_a_person_reads_tables_and_the_next_command(call, files, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = ("seal", files / "rows.jsonl", files / "safe.jsonl", *QUICK, "--lora-rank", "2", "-o", tmp_path / "sealed")
    code, out, err = call(*words)
    assert code == 0, err
    assert "weighted" in out and "keep_fraction" in out and "unscorable: empty_response" in out
    assert f"next: hf-safefilter select {tmp_path / 'sealed' / 'scored'} --by seal_score" in " ".join(err.split())
    monkeypatch.setattr("hf_safefilter.scores.seal.loop.learn", None)  # it was done: nothing is learned again
    assert call(*words)[:2] == (0, out)


def test_stopped_and_run_again(call, files, tmp_path, monkeypatch):
    words = ("--format", "json", "seal", files / "rows.jsonl", files / "safe.jsonl", *QUICK)
    whole = json.loads(call(*words, "-o", tmp_path / "whole")[1])
    again = (*words, "--checkpoint-seconds", "0", "-o", tmp_path / "stopped")
    real = Checkpoints.save

    def save(self, step, *rest):
        real(self, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        code, out, err = call(*again)
    assert (code != 0, out) == (True, ""), err
    assert not (tmp_path / "stopped" / "scored").exists()
    assert json.loads(call(*again)[1])["digest"] == whole["digest"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("ROWS", "ROWS", *QUICK), 1, "are also among the rows"),
        (("ROWS", "none.jsonl", *QUICK), 1, "none.jsonl"),
        (("ROWS", "SAFE", *QUICK, "--activation", "relu"), 2, "softmax"),
        (("ROWS", "SAFE", *QUICK, "--upper-weight", "2"), 2, "--upper-weight 2.0 is not a number"),
        (("ROWS", "SAFE", *QUICK, "--lora-target", "q_proj"), 2, "--lora-rank"),
        (("ROWS", "SAFE", *QUICK, "--lora-rank", "2", "--lora-target", "nope"), 2, "'nope'"),
        (("ROWS", "SAFE", "--model", "./nowhere"), 1, "nowhere"),
        (("ROWS", *QUICK), 2, "safe"),
    ],
)
def test_a_wrong_call_gets_a_sentence_and_an_exit_code(call, files, tmp_path, words, code, says):
    named = {"ROWS": files / "rows.jsonl", "SAFE": files / "safe.jsonl"}
    got, out, err = call("seal", *(named.get(word, word) for word in words), "-o", tmp_path / "x")
    assert (got, out) == (code, ""), err
    assert says in err and "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_a_folder_of_somebody_else_is_not_written_over(call, files, tmp_path, monkeypatch):
    (tmp_path / "x" / "scored").mkdir(parents=True)
    (tmp_path / "x" / "scored" / "thesis.txt").write_text("mine")
    monkeypatch.setattr("hf_safefilter.scores.seal.fit_seal", None)  # said before anything is trained
    code, _, err = call("seal", files / "rows.jsonl", files / "safe.jsonl", *QUICK, "-o", tmp_path / "x")
    assert code == 2 and "which would be lost" in err
    assert (tmp_path / "x" / "scored" / "thesis.txt").read_text() == "mine"


def test_a_column_of_the_same_name_is_not_written_over(call, files, tmp_path):
    rows = tmp_path / "scored_before.jsonl"
    rows.write_text(json.dumps({"prompt": "Hi", "response": "Yes", "seal_score": 1.0}) + "\n")
    code, _, err = call("seal", rows, files / "safe.jsonl", *QUICK, "-o", tmp_path / "x")
    assert code == 1 and "already have a column 'seal_score'" in err
    assert not (tmp_path / "x").exists()
