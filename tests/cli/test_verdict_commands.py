"""A bad verdict in the shell: exit code 3, what to do, no word of publishing; and a user who insists."""

import json

import pytest

from hf_safefilter import EmbedLayers, ReferenceIndex, demo
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

LAYER = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows of which the unsafe ones are the long ones, and references of their domain."""
    folder = tmp_path_factory.mktemp("verdict")
    unsafe, safe = reference_rows(20, 3)
    for name, rows in {"rows": mixed_rows(60, 0.2, 3), "unsafe": unsafe, "safe": safe}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def scored(files, tmp_path_factory):
    from datasets import Dataset

    from hf_safefilter.saved.saved_rows import save_rows
    from hf_safefilter.scores.larf import LarfScore

    embed = EmbedLayers("toy", [LAYER])
    step = LarfScore(ReferenceIndex.build(*reference_rows(20, 3), embed, license="mit", source="a test"), LAYER)
    rows = Dataset.from_list(mixed_rows(60, 0.2, 3)).map(embed, batched=True).map(step, batched=True)
    save_rows(rows, folder := tmp_path_factory.mktemp("rows") / "scored", [embed, step], name="rows", revision="none")
    return folder


def recipe(files, folder, **change):
    facts = {"license": "cc0-1.0", "source": "a test"}
    body = {
        "data": {"path": str(files / "rows.jsonl"), **facts},
        "model": "toy",
        "references": {
            "unsafe": str(files / "unsafe.jsonl"),
            "safe": str(files / "safe.jsonl"),
            "benign": None,
            **facts,
        },
        "layer": LAYER,
        "methods": ["larf"],
        "select": {"drop_count": 12},
    }
    (folder / "recipe.yaml").write_text(json.dumps(body | change))
    return folder / "recipe.yaml"


def test_run_ends_with_3_after_writing_and_does_not_speak_of_publishing(call, files, tmp_path):
    code, out, err = call("run", recipe(files, tmp_path), "-o", tmp_path / "out")
    said = " ".join(err.split())
    assert code == 3
    assert "verdict: larf follows length" in said and "Do not trust it." in said
    assert "what to do" in said and "--anyway" in said
    assert f"next: hf-safefilter compare {files / 'rows.jsonl'} --model toy --output compared" in said
    assert "hf-safefilter push" not in out + said
    card = (tmp_path / "out" / "README.md").read_text()
    begin = card.index("<!-- hf_safefilter: begin")
    assert card[begin:].splitlines()[1].startswith("**Verdict:** larf follows length")
    assert "in spite of the verdict" not in card
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (record["verdict"]["bad"], record["anyway"]) == (True, False)


def test_a_program_gets_the_verdict_and_the_exit_code(call, files, tmp_path):
    code, out, err = call("--format", "json", "run", recipe(files, tmp_path), "-o", tmp_path / "out")
    assert code == 3
    assert json.loads(out)["verdict"]["finding"] == "like length"
    assert json.loads(out)["counts"]["rows"] == 60
    assert "Do not trust it." in err


def test_labels_can_show_that_a_score_is_more_than_length(call, files, tmp_path):
    labelled = recipe(files, tmp_path, evaluate={"label": "label"})
    code, out, err = call("run", labelled, "-o", tmp_path / "out")
    assert code == 0, err
    said = " ".join(err.split())
    assert "verdict: larf beats chance and length" in said
    assert "hf-safefilter push" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Verdict:** larf beats chance and length" in card
    assert "| beats length |" in card and "| control |" in card


def test_labels_that_choose_the_threshold_judge_too(call, files, tmp_path):
    chosen = recipe(files, tmp_path, select={"label": "label", "rule": "best_f1"})
    code, out, err = call("--format", "json", "run", chosen, "-o", tmp_path / "out")
    assert (code, json.loads(out)["verdict"]["basis"]) == (0, "labels"), err


def test_a_user_may_insist_and_the_card_says_so(call, files, tmp_path, hub):
    code, out, err = call("run", recipe(files, tmp_path), "-o", tmp_path / "out", "--anyway")
    assert code == 0, err
    said = " ".join(err.split())
    assert "Do not trust it." in said and "hf-safefilter push" in said
    assert "Published in spite of the verdict." in (tmp_path / "out" / "README.md").read_text()
    code, _, err = call("push", tmp_path / "out", f"{hub.user}/insisted", "--yes")
    assert code == 0, err
    assert b"Published in spite of the verdict." in hub.repo(f"{hub.user}/insisted").files()["README.md"]


def test_push_refuses_a_bad_verdict_by_name(call, files, tmp_path, hub):
    assert call("run", recipe(files, tmp_path), "-o", tmp_path / "out")[0] == 3
    repo = f"{hub.user}/refused"
    code, out, err = call("push", tmp_path / "out", repo, "--yes")
    assert (code, out) == (1, "")
    assert "verdict on larf_score is bad" in " ".join(err.split()) and "--anyway" in err
    assert not hub.requests("POST", "/commit/")
    assert call("push", tmp_path / "out", repo, "--yes", "--anyway")[0] == 0
    assert json.loads(hub.repo(repo).files()["provenance.json"])["anyway"] is True


def test_select_judges_and_card_goes_by_what_select_found(call, scored, tmp_path):
    words = ("select", scored, "--by", "larf_score", "--drop-count", "12")
    facts = ("--license", "mit", "--source", "a test")
    code, out, err = call("--format", "json", *words, "-o", tmp_path / "blind")
    assert (code, json.loads(out)["verdict"]["finding"]) == (3, "like length")
    assert (tmp_path / "blind" / "kept").is_dir()
    code, _, err = call("card", tmp_path / "blind", *facts, "-o", tmp_path / "card")
    assert (code, "hf-safefilter push" in err) == (3, False)
    # labels beside another rule only measure
    code, out, err = call("--format", "json", *words, "--label", "label", "-o", tmp_path / "seen")
    assert (code, json.loads(out)["verdict"]["finding"]) == (0, "beats length"), err
    assert json.loads(out)["dropped"] == 12 and "12" in json.loads(out)["rule"]
    code, out, err = call("--format", "json", "card", tmp_path / "seen", *facts, "-o", tmp_path / "card")
    assert (code, json.loads(out)["verdict"]["basis"]) == (0, "labels"), err
    assert call(*words, "--anyway", "-o", tmp_path / "insisted")[0] == 0
    assert call("card", tmp_path / "insisted", *facts, "-o", tmp_path / "card")[0] == 0
    assert "Published in spite of the verdict." in (tmp_path / "card" / "README.md").read_text()


def test_a_score_of_which_nothing_is_known_is_warned_of_and_not_refused(call, tmp_path, files):
    facts = {"license": "cc0-1.0", "source": "a test"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demo.mixed_rows()[:120]))
    saft = recipe(files, tmp_path, methods=["saft"], data={"path": str(tmp_path / "rows.jsonl"), **facts})
    code, _, err = call("run", saft, "-o", tmp_path / "out")
    said = " ".join(err.split())
    assert "verdict: Nothing shows that saft finds anything here" in said
    assert (code, "hf-safefilter push" in said, "hf-safefilter compare" in said) == (0, False, True)


def test_evaluate_says_a_sentence_for_each_method(call, scored):
    code, out, err = call("evaluate", scored, "--label", "label")
    assert code == 0, err
    assert "larf beats chance and length" in " ".join(err.split())
    assert "beats length" in out and "control" in out
    code, out, _ = call("--format", "json", "evaluate", scored, "--label", "label")
    verdicts = {one["score"]: one["verdict"] for one in json.loads(out)["evaluation"]["separations"]}
    assert verdicts["larf_score"]["trusted"] and verdicts["length_score"]["finding"] == "control"
