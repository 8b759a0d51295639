"""Methods that read the text themselves, through recipes and the command line: no vectors, no layer."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from small_models import save_small_model
from stand_in import safe_rows, unsafe_rows
from trained_guard import save_trained_guard
from typer.testing import CliRunner

from hf_safefilter.cli import app
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import OptionError
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores import fitted_to, make, make_score, takes
from hf_safefilter.scores.gradient import GradientScore, fit_gradient, fit_to_references


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return str(save_trained_guard(tmp_path_factory.mktemp("guards") / "guard"))


@pytest.fixture(scope="module")
def references(model):
    embed = EmbedLayers(model, [1], device="cpu")
    return ReferenceIndex.build(unsafe_rows(5), safe_rows(5), embed, license="mit", source="the tests")


@pytest.fixture
def rows():
    return Dataset.from_list([*unsafe_rows(8), *safe_rows(12), {"prompt": "Half", "response": ""}])


def test_an_anchor_from_references_is_the_anchor_of_their_rows(model, references):
    found, expected = (
        fit_to_references(references, device="cpu"),
        fit_gradient(model, unsafe_rows(5), safe_rows(5), device="cpu"),
    )
    for name, one in expected.tensors().items():
        np.testing.assert_allclose(found.tensors()[name], one, atol=1e-7)
    assert found.facts["references"] == references.digest
    assert len(fit_to_references(references, anchors=2, device="cpu").facts["unsafe"]["rows"]) == 2
    with pytest.raises(OptionError, match="anchors=0"):
        fit_to_references(references, anchors=0)


def test_what_a_method_is_fitted_to(references):
    assert fitted_to("gradient", {}) == "references" and fitted_to("saft", {}) == "rows"
    assert fitted_to("gradient", {"anchor": "sha256:0"}) is None and fitted_to("larf", {}) is None
    assert "references" in takes("gradient") and "layer" not in takes("guard")
    step = make("gradient", references=references, anchors=2, device="cpu")
    assert make("gradient", anchor=step.anchor, device="cpu") == step
    with pytest.raises(OptionError, match="no option 'anchor_rows'"):
        make("gradient", references=references, anchor_rows=2)
    with pytest.raises(OptionError, match="compares with references"):
        make_score("gradient", {}, layer=0)
    assert make_score("gradient", {"anchor": step.anchor, "device": "cpu"}, references=references, layer=0) == step


def test_a_recipe_with_both(model, guard, rows):
    recipe = {
        "data": {"license": "mit", "source": "the tests"},
        "model": {"name": model, "device": "cpu"},
        "methods": [
            {"name": "gradient", "options": {"anchors": 4, "device": "cpu"}},
            {"name": "guard", "options": {"model": guard, "device": "cpu"}},
        ],
        "select": {"by": "gradient", "drop_count": 8},
    }
    done = purify(rows, recipe)
    assert sorted(done.kept["prompt"]) == sorted(row["prompt"] for row in safe_rows(12))
    assert done.counts.by_reason == {"score at or above the threshold": 8, "unscorable: empty_response": 1}
    assert "guard_score" in done.scored.column_names and done.layer_choice is None


def test_a_guard_needs_neither_vectors_nor_references(guard, rows, tmp_path):
    rows.to_json(tmp_path / "rows.jsonl")
    run = CliRunner()
    told = ["score", str(tmp_path / "rows.jsonl"), "--method", "guard", "--output", str(tmp_path / "scored")]
    result = run.invoke(app, [*told, "--option", f"model={guard}", "--option", "device=cpu"])
    assert result.exit_code == 0, result.output
    scored = load_from_disk(str(tmp_path / "scored"))
    assert np.isnan(scored["guard_score"]).sum() == 1 and scored["guard_unscored"][-1] == "empty_response"
    # without labels, all that is known of it is that it follows length
    kept = ["select", str(tmp_path / "scored"), "--by", "guard_score", "--drop-count", "8", "--anyway"]
    result = run.invoke(app, [*kept, "--output", str(tmp_path / "decided")])
    assert result.exit_code == 0, result.output


def test_gradient_from_the_command_line(references, rows, tmp_path):
    rows.to_json(tmp_path / "rows.jsonl")
    references.save(tmp_path / "refs")
    told = ["score", str(tmp_path / "rows.jsonl"), "--method", "gradient", "--references", str(tmp_path / "refs")]
    result = CliRunner().invoke(app, [*told, "--option", "anchors=3", "--output", str(tmp_path / "scored")])
    assert result.exit_code == 0, result.output
    steps = json.loads((tmp_path / "scored" / "safefilter.json").read_text())["steps"]
    again = GradientScore(steps[-1]["anchor"])(rows[:])["gradient_score"]
    np.testing.assert_allclose(load_from_disk(str(tmp_path / "scored"))["gradient_score"][:], again, atol=1e-6)


def test_methods_that_read_vectors_still_ask_for_them(tmp_path, rows):
    rows.to_json(tmp_path / "rows.jsonl")
    told = ["score", str(tmp_path / "rows.jsonl"), "--method", "larf", "--output", str(tmp_path / "scored")]
    result = CliRunner().invoke(app, told)
    assert result.exit_code != 0 and "hf-safefilter embed" in str(result.exception)
