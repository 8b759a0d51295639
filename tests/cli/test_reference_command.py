"""The reference commands: an audit before a model is loaded, and ordinary rows in what is built."""

import json

import pytest

from hf_safefilter.references import ReferenceIndex
from hf_safefilter.starter import starter_rows


@pytest.fixture
def files(tmp_path):
    rows = {name: starter_rows(name)[:60] for name in ("unsafe", "safe", "benign")}
    rows["long"] = [{**row, "response": 3 * row["response"]} for row in rows["unsafe"]]
    for name, side in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in side))
    return {name: tmp_path / f"{name}.jsonl" for name in rows}


def build(call, files, out, *more):
    facts = ("--model", "toy", "--layers", "4", "--license", "mit", "--source", "our red team", "-o", out)
    return call("--format", "json", "reference", "build", files["unsafe"], files["safe"], *facts, *more)


def test_an_audit_of_what_ships_is_clean(call):
    code, out, err = call("--format", "json", "reference", "audit", "starter")
    assert code == 0, err
    assert json.loads(out)["severities"]["serious"] == 0


def test_something_serious_is_said_and_has_its_exit_code(call, files):
    sides = ("--unsafe", files["long"], "--safe", files["safe"])
    code, out, err = call("--format", "json", "reference", "audit", *sides)
    body = json.loads(out)
    assert code == 3 and body["counts"] == {"unsafe": 60, "safe": 60, "benign": 240}
    assert {"check": "length", "rows": "unsafe against safe", "severity": "serious"}.items() <= body["checks"][
        0
    ].items()
    code, out, err = call("reference", "audit", *sides, "--benign", files["benign"])
    assert code == 3 and "60 benign" in out and "serious: length alone tells" in " ".join(err.split())
    assert "next: " not in err
    code, out, _ = call("--format", "quiet", "reference", "audit", *sides, "--benign", "none")
    assert code == 3
    assert "serious length: unsafe against safe" in out.splitlines() and "warning ordinary rows: benign" in out


def test_an_audit_of_nothing_and_of_half_is_a_wrong_call(call, files):
    for words in (
        (),
        ("--unsafe", files["unsafe"]),
        ("--safe", files["safe"]),
        ("starter", "--unsafe", files["unsafe"]),
    ):
        code, _, err = call("reference", "audit", *words)
        assert code == 2 and "--unsafe FILE and --safe FILE" in " ".join(err.split())


def test_ordinary_rows_are_added_and_stated(call, files, tmp_path):
    code, out, err = build(call, files, tmp_path / "refs")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["safe"], facts["benign"]) == (300, 240)
    assert facts["license"] == "mit, cc0-1.0" and "ordinary rows: starter set" in facts["source"]
    code, out, _ = call("--format", "json", "reference", "audit", tmp_path / "refs")
    assert code in (0, 3) and json.loads(out)["counts"] == {"unsafe": 60, "safe": 60, "benign": 240}


def test_ordinary_rows_may_be_the_users_own_or_none(call, files, tmp_path):
    assert build(call, files, tmp_path / "own", "--benign", files["benign"])[0] == 0
    own = ReferenceIndex.load(tmp_path / "own")
    assert (own.benign, own.license, own.source) == (60, "mit", "our red team")
    assert build(call, files, tmp_path / "none", "--benign", "none")[0] == 0
    assert ReferenceIndex.load(tmp_path / "none").benign == 0


def test_all_splits_of_a_side_are_its_rows(call, files, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    for name, split in (("unsafe", "train"), ("long", "test")):
        (both / f"{split}.jsonl").write_text(files[name].read_text())
    code, out, err = build(call, files | {"unsafe": both}, tmp_path / "refs")
    assert code == 0, err
    assert json.loads(out)["unsafe"] == 120
    code, out, _ = call("--format", "json", "reference", "audit", "--unsafe", both, "--safe", files["safe"])
    assert json.loads(out)["counts"]["unsafe"] == 120


def test_the_set_of_a_trait_is_for_the_method_that_measures_it(call, tmp_path):
    words = ("reference", "starter", "--model", "toy", "--layers", 2)
    code, out, err = call(*words, "--trait", "sycophancy", "-o", tmp_path / "refs")
    assert code == 0 and "unsafe: 20" in out and "--method shift" in err, err
