"""review from a shell: exports without a server, and mistakes that are told before one starts."""

import json
import sys

import pytest
from review.scored_folder import scored_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "scored"
    scored_folder(folder, 40)
    return folder


def test_both_exports_and_no_server(folder, call, tmp_path):
    records, table, log = tmp_path / "records.json", tmp_path / "rows.parquet", tmp_path / "decisions.jsonl"
    words = ("--export-argilla", records, "--export-atlas", table, "--decisions", log)
    code, out, _ = call("--format", "json", "review", folder, "--by", "probe_score", *words)
    assert code == 0 and json.loads(out)["rows"] == 40
    assert len(json.loads(records.read_text())) == 40 and table.exists() and not log.exists()


def test_mistakes_are_told(folder, call, tmp_path, monkeypatch):
    for words, said in {
        ("--by", "probe_score", "--text"): "--text",
        ("--by", "probe_score", "--decisions", folder / "decisions.jsonl"): "signed",
        (): "--by",
        ("--by", "none_score"): "probe_score",
    }.items():
        code, _, err = call("review", folder, "--no-browser", *words)
        assert code in (1, 2) and said in err
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = call("review", folder, "--by", "probe_score", "--no-browser")
    assert code == 1 and "hf_safefilter[review]" in err
