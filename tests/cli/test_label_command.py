"""Labels in a terminal: hidden text, keys, nothing lost, and rows that `select` takes."""

import io
import json

import pytest
from datasets import Dataset
from svg_texts import texts_of

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.cli.label import visible
from hf_safefilter.saved.saved_rows import load_rows_with_steps, save_rows
from hf_safefilter.scores.probe import Probe, ProbeScore, fit_probe
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

LAYERS = [3, 5]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    embed = EmbedLayers("toy", LAYERS)
    index = ReferenceIndex.build(*reference_rows(20, 3), embed, license="mit", source="a test")
    step = ProbeScore(fit_probe(index, [5], shrinkage=0.5))
    rows = Dataset.from_list(mixed_rows(60, 0.3, 3)).map(embed, batched=True).map(step, batched=True)
    folder = tmp_path_factory.mktemp("rows") / "scored"
    save_rows(rows, folder, [embed, step], name="rows", revision="none")
    return folder


@pytest.fixture
def press(call, monkeypatch):
    def run(keys, *words):
        monkeypatch.setattr("sys.stdin", io.StringIO(keys))
        return call("--format", "json", "label", *words)

    return run


def test_answers_are_kept_and_the_rows_scored_again_for_select(press, call, scored, tmp_path):
    out = tmp_path / "out"
    code, said, err = press("us\n?uususuuu q", scored, "-o", out, "--who", "ann")
    assert code == 0, err
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    given = {"u": "unsafe", "s": "safe", "?": "unsure"}
    assert [line["label"] for line in lines] == [given[key] for key in "us?uususuuu"]
    assert {line["who"] for line in lines} == {"ann"}
    assert [line["round"] for line in lines] == [1] * 10 + [2] * (len(lines) - 10)
    facts = json.loads(said)
    assert facts["labels"]["count"] == len(lines) == 11
    saved = load_rows_with_steps(out / "scored")
    (step,) = [step for step in saved.steps if isinstance(step, ProbeScore)]
    record = Probe.of(step.probe).facts
    assert record["labels"] == facts["labels"]
    assert (record["layers"], record["shrinkage"]) == ([5], 0.5)  # as the score before
    before = load_rows_with_steps(scored).rows
    assert saved.rows["row_id"][:] == before["row_id"][:]
    assert saved.rows["probe_score"][:] != before["probe_score"][:]
    assert {"curve.png", "curve.svg", "curve.json"} <= {path.name for path in out.iterdir()}
    code, _, err = call("select", out / "scored", "--by", "probe_score", "--drop-count", 5, "-o", tmp_path / "decided")
    assert (tmp_path / "decided" / "kept").is_dir(), err


def test_text_is_hidden_until_a_key_asks_for_it(press, scored, tmp_path):
    rows = load_rows_with_steps(scored).rows
    response = dict(zip(rows["row_id"], rows["response"], strict=True))
    _, _, err = press("q", scored, "-o", tmp_path / "a")
    (asked,) = [name for name in response if name in err]
    first = response[asked].splitlines()[0]
    assert first and first not in err
    _, out, err = press("tq", scored, "-o", tmp_path / "b")
    assert asked in err and first in err and first not in out


def test_back_takes_the_last_answer_back(press, scored, tmp_path):
    press("bub?sq", scored, "-o", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "labels.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == ["unsafe", "withdrawn", "unsure", "safe"]
    assert len({line["row_id"] for line in lines[:3]}) == 1 != len({line["row_id"] for line in lines})


def test_the_same_command_goes_on_and_asks_no_row_twice(press, scored, tmp_path):
    out = tmp_path / "out"
    assert press("uus", scored, "-o", out)[0] == 0
    _, _, err = press("susususu q", scored, "-o", out)
    assert "round 1" in err and "row 1 of 7" in err
    ids = [json.loads(line)["row_id"] for line in (out / "labels.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 11


def test_it_stops_after_the_rounds_it_is_told(press, scored, tmp_path):
    code, _, err = press("us" * 20, scored, "-o", tmp_path / "out", "--rounds", 1)
    assert code == 0 and "10 labels" in err
    assert len((tmp_path / "out" / "labels.jsonl").read_text().splitlines()) == 10


def test_labels_of_one_kind_are_kept_without_scores(press, scored, tmp_path):
    code, said, err = press("ssq", scored, "-o", tmp_path / "out")
    assert code == 0 and "both kinds" in err and "output" not in json.loads(said)
    assert not (tmp_path / "out" / "scored").exists()


def test_labels_made_elsewhere(call, scored, tmp_path):
    code, said, err = call("--format", "json", "label", scored, "-o", tmp_path / "a", "--from", "label")
    assert code == 0, err
    facts = json.loads(said)
    assert facts["labels"]["count"] == 60 and facts["curve"][-1]["auroc"]["value"] > 0.5
    drawn = str(texts_of(tmp_path / "a" / "curve.svg"))
    assert "AUROC on the labelled rows" in drawn and "doubtful" not in drawn  # nobody has chosen them here
    log = tmp_path / "a" / "labels.jsonl"
    assert json.loads(log.read_text().splitlines()[0])["round"] == 0
    code, again, err = call("--format", "json", "label", scored, "-o", tmp_path / "b", "--from", log)
    assert code == 0, err
    assert json.loads(again)["curve"] == facts["curve"]
    scores = [load_rows_with_steps(tmp_path / name / "scored").rows["probe_score"][:] for name in "ab"]
    assert scores[0] == scores[1]


def test_what_makes_no_sense_is_said(call, press, scored, tmp_path):
    out = tmp_path / "out"
    code, _, err = call("label", scored, "-o", out, "--from", "nothing")
    assert code == 2 and "neither a file nor a column" in " ".join(err.split())
    code, _, err = call("label", scored, "-o", out, "--from", "label", "--unsafe", "bad")
    assert code == 1 and "--unsafe" in err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"row_id": "a"}\n')
    code, _, err = call("label", scored, "-o", out, "--from", bad)
    assert code == 1 and "line 1 of bad.jsonl" in " ".join(err.split())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    code, _, err = press("q", scored, "-o", tmp_path / "other")
    assert code == 2 and "other files" in err


def test_what_could_steer_a_terminal_is_not_shown():
    assert visible("a\x1b[2Jb\r\nc\td\x07\x9b\u202ee\u200b\u0000f") == "a[2Jb\nc    def"
    assert visible("ünïcode 日本 🙂") == "ünïcode 日本 🙂"
