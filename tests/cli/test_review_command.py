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


def test_a_card_of_scored_rows_and_decisions_is_the_one_of_select_and_card(folder, call, tmp_path, stated):
    from datasets import load_from_disk

    log = tmp_path / "decisions.jsonl"
    rows = load_from_disk(folder)["train"]
    words = {"decision": "keep", "who": "ann", "when": "2026-11-26T09:00:00Z"}
    kept = max(range(len(rows)), key=lambda place: rows[place]["probe_score"] if place != 8 else -9)
    log.write_text(json.dumps({"row_id": rows[kept]["row_id"], **words}) + "\n")
    ways = ("--by", "probe", "--drop-count", 5, "--decisions", log)
    facts = ("--license", "mit", "--source", "a test", "--anyway")
    assert call("select", folder, *ways, "--output", tmp_path / "decided", "--anyway")[0] == 0
    assert call("card", tmp_path / "decided", *facts, "--output", tmp_path / "long")[0] == 0
    code, _, err = call("card", folder, *ways, *facts, "--output", tmp_path / "short")
    assert code == 0, err
    assert stated(tmp_path / "short") == stated(tmp_path / "long")
    assert stated(tmp_path / "short")["review"]["kept"] == 1
    code, _, err = call("card", tmp_path / "decided", *ways, *facts, "--output", tmp_path / "more")
    assert code == 2 and "already holds a decision" in err
    code, _, err = call("card", folder, *facts, "--output", tmp_path / "more")
    assert code == 2 and "--by" in err


@pytest.fixture
def stated():
    def read(folder):
        record = json.loads((folder / "provenance.json").read_text())
        return {name: record[name] for name in ("counts", "selection", "review", "steps", "verdict", "anyway")}

    return read


def test_a_recipe_leaves_its_scored_rows_for_a_review_and_the_two_commands_publish(call, tmp_path):
    """run --scored, review, card: what a person decides after a recipe needs no command in between."""
    from hf_safefilter.review.review import Review
    from hf_safefilter.toy.corpus import mixed_rows

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed_rows(40, 0.25, 3)))
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{path: {tmp_path}/rows.jsonl, license: mit, source: a test}}\nmodel: toy\n"
        "references: {path: starter}\nselect: {drop_fraction: 0.2}\n"
    )
    words = ("run", tmp_path / "recipe.yaml", "--output", tmp_path / "out", "--anyway")
    for output, rows in (("out", "out"), ("out", "out/scored"), ("scored/out", "scored")):
        asked = ("--output", tmp_path / output, "--scored", tmp_path / rows)
        code, _, err = call("run", tmp_path / "recipe.yaml", *asked)
        assert code == 2 and "leave out --scored" in err and not (tmp_path / rows).exists()
    code, _, err = call(*words, "--scored", tmp_path / "scored")
    assert code == 0 and f"hf-safefilter review {tmp_path}/scored --by largest_deviation_score" in err
    review = Review.of(tmp_path / "scored", tmp_path / "decisions.jsonl", by="largest_deviation", drop_fraction=0.2)
    assert review.row_map is not None
    place = int(review.rows.scores.argmax())
    review.decide(place, {"decision": "keep", "who": "ann"})
    command = review.command("0.7").replace("LICENSE", "mit").replace("SOURCE", "test").split()[1:]
    command[command.index("--output") + 1] = str(tmp_path / "published")
    code, _, err = call(*command, "--anyway")
    assert code == 0, err
    code, out, _ = call("--format", "json", "verify", tmp_path / "published", "--source", tmp_path / "rows.jsonl")
    assert code == 0 and {line["result"] for line in json.loads(out)["lines"]} == {"pass"}
