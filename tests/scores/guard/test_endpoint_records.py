"""A guard at an endpoint through the commands: what a record of it says, and that no record chooses who is asked."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from stand_in import safe_rows, unsafe_rows

from hf_safefilter.errors import IntegrityError
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.pipeline.verification import Verification
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.saved.saved_rows import TRAIL, load_rows_with_steps

FAMILY = "llama_guard_3"


@pytest.fixture
def rows():
    return Dataset.from_list([*unsafe_rows(12), *safe_rows(12), {"prompt": "Half", "response": ""}])


def recipe_at(address, **more):
    options = {"model": "tiny-guard", "preset": FAMILY, "endpoint": address}
    return {
        "data": {"license": "mit", "source": "the tests"},
        "model": "toy",
        "layer": 1,
        "methods": [{"name": "guard", "options": options}, "length"],
        "select": {"by": "guard", "drop_count": 12},
    } | more


def scored_by_shell(call, rows, server, tmp_path):
    rows.to_json(tmp_path / "rows.jsonl")
    told = ["score", tmp_path / "rows.jsonl", "--method", "guard", "--output", tmp_path / "scored"]
    options = {"model": "tiny-guard", "preset": FAMILY, "endpoint": server.address}
    code, out, err = call("--format", "json", *told, *(word for name, value in options.items()
                                             for word in ("--option", f"{name}={value}")))  # fmt: skip
    assert code == 0, err
    return json.loads(out)


def test_in_a_shell(call, rows, server, tmp_path):
    report = scored_by_shell(call, rows, server, tmp_path)
    assert report["requests"] == len(server.log) == 25 and report["tokens_out"] == 50
    scored = load_from_disk(str(tmp_path / "scored"))
    assert min(scored["guard_score"][:12]) > 0.5 > max(scored["guard_score"][12:24])
    assert scored["guard_unscored"][-1] == "empty_response" and np.isnan(scored["guard_score"][-1])
    server.log.clear()
    told = [
        "select",
        tmp_path / "scored",
        "--by",
        "guard_score",
        "--drop-count",
        "12",
        "--anyway",
        "-o",
        tmp_path / "out",
    ]
    assert call(*told)[0] == 0 and not server.log, "a command that reads no row asks nobody"
    said = call("score", tmp_path / "rows.jsonl", "--method", "guard", "--output", tmp_path / "more",
                "--option", "model=tiny-guard", "--option", f"preset={FAMILY}",
                "--option", "endpoint=http://me:s3cret@127.0.0.1/v1")  # fmt: skip
    assert said[0] == 2 and "s3cret" not in "".join(map(str, said))


def test_a_recipe_and_its_card(rows, server, tmp_path):
    done = purify(rows, recipe_at(server.address), anyway=True)
    assert sorted(done.kept["prompt"]) == sorted(row["prompt"] for row in safe_rows(12))
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    (step,) = (step for step in done.provenance.steps if step["step"] == "GuardScore")
    assert step["endpoint"] == server.address and step["served"] == "tiny-guard" and "revision" not in step
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "verdicts were read from the log-probabilities of their first token" in card
    assert "The weights behind an endpoint cannot be pinned, so nobody can verify this score." in card
    server.log.clear()
    results = {line.check: line for line in Verification(tmp_path / "out", rows).lines()}
    assert results["scores"].result == "cannot say" and "whose weights nobody can pin" in results["scores"].why
    assert {name: line.result for name, line in results.items() if name != "scores"} == dict.fromkeys(
        ("files", "card", "decision", "rows"), "pass"
    )
    assert not server.log, "verifying asks nobody"


def test_scores_that_did_not_decide_keep_nothing_from_being_verified(rows, server, tmp_path):
    recipe = recipe_at(server.address, select={"by": "length", "drop_count": 5})
    done = purify(rows, recipe, anyway=True)
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    server.log.clear()
    assert {line.result for line in Verification(tmp_path / "out", rows).lines()} == {"pass"} and not server.log


def test_a_decision_that_rests_on_it_in_part_cannot_be_verified(rows, server, tmp_path):
    done = purify(rows, recipe_at(server.address, select={"by": "rank_average", "drop_count": 12}), anyway=True)
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    server.log.clear()
    assert {line.check: line.result for line in Verification(tmp_path / "out", rows).lines()}["scores"] == "cannot say"
    assert not server.log


def test_a_card_holds_no_path_of_this_machine(rows, server, tmp_path):
    (tmp_path / "policy.md").write_text("No answer may begin with Sure.", encoding="utf-8")
    options = {"model": "tiny-guard", "policy": str(tmp_path / "policy.md"), "endpoint": server.address,
               "served": "tiny-guard", "top_logprobs": 0}  # fmt: skip
    recipe = recipe_at(server.address, methods=[{"name": "guard", "options": options}, "length"],
                       select={"by": "length", "drop_count": 5})  # fmt: skip
    done = purify(rows, recipe, anyway=True)
    assert str(tmp_path) not in done.provenance.to_json()
    assert done.provenance.recipe["methods"][0]["options"] == options | {"policy": "policy.md"}
    (step,) = (step for step in done.provenance.steps if step["step"] == "GuardScore")
    assert step["policy"].startswith("sha256:")


def test_a_folder_from_elsewhere_does_not_choose_where_rows_are_sent(call, rows, server, tmp_path, monkeypatch):
    scored_by_shell(call, rows, server, tmp_path)
    server.log.clear()
    assert load_rows_with_steps(tmp_path / "scored").steps[0].endpoint == server.address
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(IntegrityError, match="by a model at an endpoint, which is asked only where it was named"):
        load_rows_with_steps(tmp_path / "scored", trust_vectors=True)
    trail = json.loads((tmp_path / "scored" / TRAIL).read_text())
    assert trail["steps"][0]["endpoint"] == server.address and not server.log
