"""inspect: which rows are shown and why, and nothing of what they say unless asked; on the page everything escaped."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_safefilter import EmbedLayers, LengthScore, ReferenceIndex
from hf_safefilter.decide.explanations import _distinct, explain
from hf_safefilter.decide.suspects import suspects
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.saved.saved_rows import save_rows
from hf_safefilter.scores import make_score
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

LAYERS = (3, 5)
MARKUP = "<script>alert(1)</script> & \x1b[31mred"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Rows scored by the probe and the shift, decided by the larger rank; one cannot be read, one holds markup."""
    rows = [{name: row[name] for name in ("prompt", "response")} for row in mixed_rows(40, 0.25, 3)]
    rows[7]["response"] = MARKUP
    rows += [{"prompt": "Hello", "response": ""}]
    embed = EmbedLayers("toy", LAYERS, position="mean,last_prompt")
    index = ReferenceIndex.build(*reference_rows(20, 3), embed, license="mit", source="a test")
    steps = [embed, *(make_score(name, {}, references=index, layer=5, layers=LAYERS) for name in ("probe", "shift"))]
    ds = embed_rows(Dataset.from_list(rows), embed)
    for step in steps[1:]:
        ds = score_rows(ds, step)
    ds, rank = add_ranks(ds, ["probe_score", "shift_score"], "largest_rank")
    folder = tmp_path_factory.mktemp("scored") / "scored"
    save_rows(ds, folder, [*steps, rank], name="rows", revision="none")
    return folder, ds, [*steps, rank], index


def test_the_most_dangerous_rows_and_those_on_both_sides_of_the_threshold():
    scores = np.array([0.1, 0.9, np.nan, 0.5, 0.7, 0.4, 0.8, 0.2])
    groups = list(suspects(scores, 0.5, near=2, top=1).values())
    assert groups == [[1], [4, 3], [5, 7]]
    assert list(suspects(scores, 0.05, near=9, top=0).values()) == [[], [1, 6, 4, 3, 5, 7, 0], []]


def test_an_explanation_names_what_a_search_by_hand_finds(scored):
    _, ds, steps, index = scored
    found = explain(ds, "largest_rank_score", steps, k=3)
    by = ds["largest_rank_by"][:]
    assert {"probe", "shift"} <= {item.method for item in found[:-1]} and [item.method for item in found[:-1]] == by[
        :-1
    ]
    assert found[-1].words.startswith("could not be read") and np.isnan(found[-1].score)
    unsafe, safe = (side.astype(np.float64) for side in index.vectors(5))
    both = np.concatenate([unsafe, safe])
    mean, deviation = both.mean(0), both.std(0)
    for row in (0, 7, 20):
        vector = (np.array(ds[row]["emb_layer_5"][ds[row][f"{by[row]}_span"]], float) - mean) / deviation
        side = (unsafe - mean) / deviation
        cosines = side @ vector / np.linalg.norm(side, axis=1) / np.linalg.norm(vector)
        owners = index.owners("unsafe")[np.argsort(-cosines)] + 1
        assert [item.number for item in found[row].unsafe] == list(dict.fromkeys(owners.tolist()))[:3]
        nearest = [cosines[index.owners("unsafe") + 1 == item.number].max() for item in found[row].unsafe]
        np.testing.assert_allclose([item.cosine for item in found[row].unsafe], nearest, atol=2e-3)
        assert found[row].turn == 1 and found[row].stop > found[row].start


def test_a_reference_with_several_near_spans_is_named_once_by_the_nearest():
    near = _distinct(np.array([4, 7, 4, 0, 7, 2]), np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), 3)
    assert [(item.number, item.cosine) for item in near] == [(4, 0.9), (7, 0.8), (2, 0.4)]


def test_the_shell_shows_reasons_and_no_text_unless_asked(scored, call, tmp_path):
    folder, ds, *_ = scored
    words = ("--by", "largest_rank_score", "--drop-count", 10, "--near", 3, "--top", 4)
    code, out, _ = call("--format", "json", "inspect", folder, *words, "--html", tmp_path / "page.html")
    shown = json.loads(out)["suspects"]
    assert code == 0 and len(shown) == 10 and all("unsafe references" in item["words"] for item in shown)
    order = np.argsort(-np.array(ds["largest_rank_score"], float)[:-1], kind="stable")
    assert [item["row"] for item in shown] == [*order[:4], *order[7:10], *order[10:13]]
    said = [row["response"] for row in ds if len(row["response"]) > 20]
    page = (tmp_path / "page.html").read_text()
    assert not any(text in out or text in page for text in said)


def test_a_page_with_text_shows_markup_as_text(scored, call, tmp_path):
    folder, *_ = scored
    words = ("--by", "largest_rank_score", "--drop-count", 10, "--near", 40, "--text", "--html", tmp_path / "page.html")
    code, _, _ = call("--format", "json", "inspect", folder, *words)
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in page
    assert "<script" not in page and "\x1b" not in page and "http" not in page.replace("http-equiv", "")


def test_nothing_to_show_is_an_error(scored, call):
    code, _, err = call("inspect", scored[0], "--by", "largest_rank_score", "--drop-count", 3, "--near", 0, "--top", 0)
    assert code == 1 and "--top" in err


def test_a_row_of_several_splits_is_named_by_its_split_and_its_number_in_it(call, tmp_path):
    rows = [{"prompt": "Hello", "response": "a" * length} for length in (5, 9, 1, 7, 3)]
    ds = DatasetDict({"train": Dataset.from_list(rows[:3]), "test": Dataset.from_list(rows[3:])})
    save_rows(score_rows(ds, LengthScore()), tmp_path / "scored", [LengthScore()], name="rows", revision="none")
    words = ("inspect", tmp_path / "scored", "--by", "length", "--drop-count", 2, "--top", 1, "--near", 2, "--text")
    code, out, err = call(*words, "--html", tmp_path / "page.html", "--format", "json")
    assert code == 0, err
    found = [(one["split"], one["row"], one["text"].rpartition(" ")[2]) for one in json.loads(out)["suspects"]]
    longest_first = [("train", 1), ("test", 0), ("train", 0), ("test", 1)]
    assert found == [(split, row, ds[split][row]["response"]) for split, row in longest_first]
    assert ">test 0<" in (tmp_path / "page.html").read_text() and "test 0 " in call(*words)[1]
