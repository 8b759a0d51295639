"""`hf-safefilter effect` and the card it goes into, as a person and a program use them."""

import json

import pytest

from hf_safefilter.toy.corpus import heldout_prompts, mixed_rows

SMALL = ("--steps", "2", "--batch", "4", "--seeds", "1", "--device", "cpu", "--arms", "all,kept,dropped")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder as score writes it: 60 rows, scored by LARF against the starter references."""
    from datasets import Dataset

    from hf_safefilter import EmbedLayers, LarfScore, ReferenceIndex
    from hf_safefilter.saved.saved_rows import save_rows
    from hf_safefilter.toy.corpus import reference_rows

    embed = EmbedLayers("toy", [5])
    step = LarfScore(ReferenceIndex.build(*reference_rows(20, 3), embed, license="mit", source="a test"), 5)
    rows = Dataset.from_list(mixed_rows(60, 0.2, 3)).map(embed, batched=True).map(step, batched=True)
    save_rows(rows, folder := tmp_path_factory.mktemp("rows") / "scored", [embed, step], name="rows", revision="none")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    for kind in ("harmful", "borderline"):
        rows = [{"prompt": prompt} for prompt in heldout_prompts(kind, 5)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--harmful", folder / "harmful.jsonl", "--over-refusal", folder / "borderline.jsonl")


def test_from_a_score_to_the_card(call, scored, files, tmp_path):
    at = tmp_path / "decided"
    # of these rows the unsafe ones are the long ones: without labels, the verdict would be that all is length
    measured = ("--label", "label")
    assert call("select", scored, "--by", "larf_score", "--drop-count", "12", *measured, "-o", at)[0] == 0
    code, out, err = call("effect", at, *files, *SMALL, "-o", tmp_path / "effect")
    assert code == 0, err
    assert "refusal" in out
    assert "3 of 3: dropped" in err
    assert "refusals of kept" in " ".join(err.split())
    code, out, err = call("--format", "json", "effect", at, *files, *SMALL, "-o", tmp_path / "effect")
    assert code == 0, err
    body = json.loads(out)["effect"]
    assert body["inputs"]["model"] == "toy"
    assert body["counts"]["dropped"] == 12
    assert body["counts"]["harmful"] == 5
    facts = ("--license", "mit", "--source", "a test")
    code, _, err = call("card", at, *facts, "--effect", tmp_path / "effect", "-o", tmp_path / "out")
    assert code == 0, err
    assert "### What it does to a model" in (tmp_path / "out" / "README.md").read_text()
    other = tmp_path / "other"
    assert call("select", scored, "--by", "larf_score", "--drop-count", "5", *measured, "-o", other)[0] == 0
    code, _, err = call("card", other, *facts, "--effect", tmp_path / "effect", "-o", tmp_path / "none")
    assert (code, "another decision" in err) == (1, True)


def test_quick_needs_nothing_but_a_score(call, scored, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_safefilter.cli.effect._QUICK_STEPS", 1)
    monkeypatch.setattr("hf_safefilter.cli.effect._QUICK_QUESTIONS", 4)
    words = ("--by", "larf_score", "--drop-fraction", "0.2", "--quick", "--seeds", "1", "-o", tmp_path / "out")
    code, out, err = call("--format", "json", "effect", scored, *words)
    assert code == 0, err
    body = json.loads(out)["effect"]
    assert list(body["arms"]) == ["all", "kept", "dropped", "random", "length_matched"]
    assert body["inputs"]["tuning"]["method"] == "full"
    assert body["counts"]["harmful"] == 4


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "--by larf_score"),
        (("--by", "larf_score"), 2, "--drop-fraction"),
        (("--by", "cheese_score", "--drop-count", "3"), 1, "cheese_score"),
        (("--by", "larf_score", "--drop-count", "3", "--arms", "most"), 2, "most"),
        (("--by", "larf_score", "--drop-count", "3", "--freeze", "two"), 2, "--freeze 6-12"),
        (("--by", "larf_score", "--drop-count", "3", "--judge", "broads"), 2, "broad"),
        (("--by", "larf_score", "--drop-count", "3", "--tune", "magic"), 2, "magic"),
        (("--by", "larf_score", "--drop-count", "3", "--harmful", "none.jsonl"), 1, "none.jsonl"),
    ],
)
def test_a_wrong_call_gets_a_sentence(call, scored, tmp_path, words, code, says):
    got, out, err = call("effect", scored, *words, "-o", tmp_path / "x")
    assert (got, out) == (code, ""), err
    assert says in err
    assert not (tmp_path / "x").exists()


def test_the_prompts_that_an_anchor_was_fitted_to_are_known(tmp_path):
    from datasets import Dataset

    from hf_safefilter import EmbedLayers, ReferenceIndex
    from hf_safefilter.cli.effect import _reference_prompts
    from hf_safefilter.saved.saved_rows import load_rows_with_steps, save_rows
    from hf_safefilter.scores.gradient import GradientScore, fit_to_references
    from hf_safefilter.toy.corpus import reference_rows

    sides = reference_rows(3, 3)
    index = ReferenceIndex.build(*sides, EmbedLayers("toy", [1]), license="mit", source="a test")
    step = GradientScore(fit_to_references(index, parts="last_blocks", device="cpu"), device="cpu")
    rows = Dataset.from_list(mixed_rows(4, 0.5, 3)).map(step, batched=True)
    save_rows(rows, tmp_path / "scored", [step], name="rows", revision="none")
    known = _reference_prompts(load_rows_with_steps(tmp_path / "scored"))
    assert set(known) == {row["prompt"] for side in sides for row in side}


def test_help_shows_an_example(call):
    code, out, _ = call("effect", "--help")
    assert code == 0
    assert "hf-safefilter effect scored --by larf_score" in " ".join(out.split())
