"""The default of a recipe, stage by stage: starter references, two scores, and the larger of their ranks."""

import json

import numpy as np
import pytest

from hf_safefilter.saved.saved_rows import load_rows_with_steps
from hf_safefilter.toy.corpus import mixed_rows


@pytest.fixture
def embedded(call, tmp_path):
    rows = [{name: row[name] for name in ("prompt", "response")} for row in mixed_rows(30, 0.3, 3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "--model toy --layers 3,4 --position mean,last_prompt --output"
    assert call("embed", tmp_path / "rows.jsonl", *words.split(), tmp_path / "embedded")[0] == 0
    return tmp_path / "embedded"


def test_starter_references_and_the_larger_rank_of_two_scores(call, embedded, tmp_path):
    steps = [
        ("probe", embedded, ["--references", "starter"]),
        ("length", tmp_path / "probe", []),
        ("shift", tmp_path / "length", ["--layer", "4", "--references", "starter"]),
        ("largest_rank", tmp_path / "shift", []),
    ]
    for method, folder, more in steps:
        code, _, err = call("score", folder, "--method", method, *more, "--output", tmp_path / method)
        assert code == 0, err
    rows = load_rows_with_steps(tmp_path / "largest_rank").rows
    ranks = [np.argsort(np.argsort(rows[f"{name}_score"])) for name in ("probe", "shift")]
    order = np.maximum(*ranks)
    found = np.array(rows["largest_rank_score"])
    assert (np.sign(np.subtract.outer(found, found)) == np.sign(np.subtract.outer(order, order))).all()
    words = ["--method", "rank_average", "--option", "of=probe,shift_score", "--output", tmp_path / "average"]
    assert call("score", tmp_path / "shift", *words)[0] == 0


@pytest.mark.parametrize(
    "more", [[], ["--option", "of=probe,larf"], ["--option", "of=probe,probe"], ["--option", "of=5"]], ids=str
)
def test_ranks_are_of_two_scores_that_are_there(call, embedded, tmp_path, more):
    words = ["--method", "probe", "--references", "starter", "--output", tmp_path / "probe"]
    assert call("score", embedded, *words)[0] == 0
    code, _, err = call("score", tmp_path / "probe", "--method", "largest_rank", *more, "--output", tmp_path / "out")
    assert code == 2 and "two scores or more" in err and "of=ensemble,shift" in err
    assert not (tmp_path / "out").exists()


def test_a_published_folder_is_told_from_scored_rows(call, tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    code, _, err = call("review", tmp_path, "--by", "x", "--no-browser")
    assert code == 1 and "--scored" in err
