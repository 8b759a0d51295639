"""`hf-safefilter compare` as a person and a program use it."""

import json

import pytest

from hf_safefilter import EmbedLayers, ReferenceIndex, demo
from hf_safefilter.toy.corpus import reference_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in demo.mixed_rows()[:120]))
    return path


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """References of the same domain as the rows; the starter set is not, and separates them no better than chance."""
    at = tmp_path_factory.mktemp("refs") / "refs"
    sides = reference_rows(40, 3)
    ReferenceIndex.build(*sides, EmbedLayers("toy", [5]), license="cc0-1.0", source="a test").save(at)
    return at


def test_compare_prints_tables_and_writes_json_plots_and_rows(call, rows, references, tmp_path):
    at = tmp_path / "out"
    words = ("compare", rows, "--model", "toy", "--layer", "5", "--methods", "larf,nearest,saft", "--label", "label",
             "--references", references)  # fmt: skip
    code, out, err = call(*words, "--option", "nearest.k=3", "-o", at)
    assert code == 0, err
    assert "AUROC" in out
    assert "score 1,000 rows" in " ".join(out.split())
    assert "larf beats chance and length" in " ".join(err.split())
    assert "next: hf-safefilter effect" in " ".join(err.split())
    assert {path.name for path in at.iterdir()} == {"comparison.json", "comparison.png", "comparison.svg", "scored"}
    assert json.loads((at / "comparison.json").read_text())["rows"] == 120
    code, out, err = call("--format", "json", *words, "-o", at)  # an earlier output is replaced
    assert code == 0, err
    assert [one["method"] for one in json.loads(out)["comparison"]["entries"]] == [
        "larf", "nearest", "saft", "length", "random",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--methods", "lark"), 2, "larf"),
        (("--methods", "larf", "--option", "nearest.k=3"), 2, "none of the --methods"),
        (("--methods", "larf", "--option", "k=3"), 2, "method.name=value"),
        (("--methods", "nearest", "--option", "nearest.k=["), 2, "is not a value"),
        (("--methods", "larf", "--references", "none"), 1, "no method could be used"),
        (("--methods", "larf", "--layer", "99"), 2, "99"),
        (("--methods", "larf", "--label", "cheese"), 1, "cheese"),
    ],
)
def test_a_wrong_call_writes_nothing(call, rows, tmp_path, words, code, says):
    layer = () if "--layer" in words else ("--layer", "5")
    got, out, err = call("compare", rows, "--model", "toy", *layer, *words, "-o", tmp_path / "x")
    assert (got, out) == (code, ""), err
    assert says in err
    assert not (tmp_path / "x").exists()


def test_a_folder_of_other_files_is_refused_before_anything_is_scored(call, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_safefilter.compare.compare_methods.compare_methods", lambda *_, **__: pytest.fail("scored too early")
    )
    (tmp_path / "mine.txt").write_text("keep")
    code, _, err = call("compare", rows, "--model", "toy", "--layer", "5", "--methods", "larf", "-o", tmp_path)
    assert (code, "other files" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_next_command_names_no_control_and_no_score_with_a_bad_verdict(call, tmp_path):
    rows = [{"prompt": "Hi", "response": "word " * (30 - at), "label": "safe" if at > 9 else "unsafe"}
            for at in range(20)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--model", "toy", "--layer", "1", "--methods", "anchor", "--label", "label", "-o", tmp_path / "out")
    code, out, err = call("--format", "json", "compare", tmp_path / "rows.jsonl", *words)
    assert code == 0, err
    entries = {one["method"]: one["separation"]["auroc"] for one in json.loads(out)["comparison"]["entries"]}
    assert entries["length"] == 1.0 > entries["anchor"]
    code, _, err = call("compare", tmp_path / "rows.jsonl", *words)
    assert "none of these scores is to be trusted" in " ".join(err.split())
    assert "--by" not in err and "reference build" in " ".join(err.split())


def test_the_next_command_asks_for_prompts_where_the_starter_set_is_used_up(call, rows, tmp_path):
    from hf_safefilter.model.source import local_folder

    words = ("--layer", "5", "--methods", "larf", "-o", tmp_path / "out")
    assert "--harmful" not in call("compare", rows, "--model", "toy", *words)[2]
    code, _, err = call("compare", rows, "--model", local_folder("toy"), *words)
    assert (code, "--harmful PROMPTS" in " ".join(err.split())) == (0, True), err


def test_help_shows_an_example(call):
    code, out, _ = call("compare", "--help")
    assert code == 0
    assert "hf-safefilter compare rows.jsonl" in " ".join(out.split())
