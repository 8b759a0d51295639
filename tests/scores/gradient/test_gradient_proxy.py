"""The form without scaling: the anchor is the gradient of a proxy of safety, the score its fall under one SGD step."""

import numpy as np
import pytest
import torch
from small import flat_gradient, made_up, random_anchor, small
from small_models import save_small_model
from stand_in import safe_rows, unsafe_rows
from test_gradient_exact import HARM, SAFE_1, X, of_vectors

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores import make
from hf_safefilter.scores.gradient import GradientScore, anchor, fit, fit_gradient
from hf_safefilter.scores.gradient import row_scores as measure
from hf_safefilter.scores.gradient.examples import row_losses
from hf_safefilter.scores.gradient.fit import combined
from hf_safefilter.scores.gradient.meters import Exact, Projected

CPU = torch.device("cpu")
UNSAFE, SAFE = unsafe_rows(4), [{"prompt": row["prompt"], "response": "Sorry, not that"} for row in safe_rows(3)]
ROWS = [*unsafe_rows(6), *safe_rows(6), {"prompt": "Half", "response": ""}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("models") / "llama", tie_word_embeddings=True))


@pytest.fixture(scope="module")
def fitted(model):
    return fit_gradient(model, UNSAFE, SAFE, normalize=False, device="cpu")


def examples_of(fitted, rows, most=None):
    return anchor.examples_of(fitted.facts, as_conversations(rows), most)


@pytest.fixture
def exact(fitted):
    """The anchor's model in float64."""
    tuned = anchor.tuned_of(fitted.facts, CPU)
    tuned.model.double()
    yield tuned
    tuned.model.float()


def scored(fitted, rows=ROWS):
    return GradientScore(fitted, device="cpu")({name: [row[name] for row in rows] for name in ("prompt", "response")})


def test_golden_values():
    total = combined([of_vectors(HARM), of_vectors(SAFE_1)], normalize=False)
    np.testing.assert_allclose(total["p"], [1, 0.5, 1], rtol=0, atol=1e-12)
    meter = Exact(total, 5, normalize=False)
    meter.add("p", torch.tensor([*X, [0, 0, 0]], dtype=torch.float64))
    np.testing.assert_allclose(meter.scores(), [5, 1, -0.5, 2.5, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_many_rows_in_one_backward_are_exact(name):
    tuned = small(name, tie_word_embeddings=True)
    examples, total = made_up(), random_anchor(tuned)
    assert (measure.fast_rules(tuned) is None) == (name == "opt")
    whole = torch.cat([tensor.flatten() for tensor in total.values()])
    expected = [float(flat_gradient(tuned, example) @ whole) for example in examples]
    found, reasons = measure.measure(tuned, examples, lambda count: Exact(total, count, normalize=False), 40)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * max(map(abs, expected)))
    assert reasons == [""] * len(examples)


def test_the_anchor_is_the_difference_of_mean_gradients_and_scores_are_products(fitted, exact):
    unsafe, safe = (
        torch.stack([flat_gradient(exact, example) for example in examples_of(fitted, rows, 10)]).mean(0)
        for rows in (UNSAFE, SAFE)
    )
    total = unsafe - safe
    whole = torch.cat([fitted.tensors()[name].flatten() for name in exact.parameters]).double()
    torch.testing.assert_close(whole, total, rtol=0, atol=1e-6 * float(total.norm()))
    expected = np.array([float(flat_gradient(exact, example) @ total) for example in examples_of(fitted, ROWS[:-1])])
    exact.model.float()
    found = scored(fitted)
    np.testing.assert_allclose(found["gradient_score"][:-1], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert found["gradient_unscored"].tolist() == [""] * 12 + ["empty_response"]
    assert found["gradient_score"][:6].min() > found["gradient_score"][6:12].max()


def proxy(fitted, tuned):
    """Mean loss of the unsafe answers minus that of the safe ones: the larger, the safer."""
    with torch.no_grad():
        unsafe, safe = (
            row_losses(tuned.model, examples_of(fitted, rows, 10), tuned.mask).mean() for rows in (UNSAFE, SAFE)
        )
    return float(unsafe - safe)


def test_the_score_is_how_far_one_step_lowers_the_proxy(fitted, exact):
    rate, falls = 1e-5, []
    for example in examples_of(fitted, ROWS[:-1]):
        step = flat_gradient(exact, example) * rate
        values = []
        for sign in (-1, 1):
            _move(exact, sign * step)
            values.append(proxy(fitted, exact))
            _move(exact, -sign * step)
        falls.append((values[1] - values[0]) / (2 * rate))
    exact.model.float()
    np.testing.assert_allclose(scored(fitted)["gradient_score"][:-1], falls, rtol=1e-3, atol=1e-3 * np.abs(falls).max())


def _move(tuned, by):
    with torch.no_grad():
        start = 0
        for parameter in tuned.parameters.values():
            parameter += by[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()


def test_the_projection_estimates_the_same(model, fitted):
    width = 4096
    near = fit_gradient(model, UNSAFE, SAFE, normalize=False, projection=width, parts="last_blocks", device="cpu")
    whole = fit_gradient(model, UNSAFE, SAFE, normalize=False, parts="last_blocks", device="cpu")
    found, expected = (scored(one)["gradient_score"][:-1] for one in (near, whole))
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert np.polyfit(expected, found, 1)[0] == pytest.approx(1, abs=0.1)
    lengths = Projected(0, 64, 1, torch.ones(64), CPU, normalize=False)
    lengths.add("p", torch.zeros(1, 5))
    assert lengths.scores().tolist() == [0.0], "a row that moves nothing lowers nothing"


def test_only_the_other_form_is_stated(model, fitted):
    scaled = fit_gradient(model, UNSAFE, SAFE, device="cpu")
    assert fitted.facts["normalize"] is False and "normalize" not in scaled.facts
    assert (
        np.abs(scored(scaled)["gradient_score"][:-1]).max() <= 2 < np.abs(scored(fitted)["gradient_score"][:-1]).max()
    )


def test_a_recipe_says_so_by_an_option_of_the_method(model):
    embed = EmbedLayers(model, [1], device="cpu")
    references = ReferenceIndex.build(UNSAFE, SAFE, embed, license="mit", source="the tests")
    step = make("gradient", references=references, normalize=False, device="cpu")
    expected = fit_gradient(model, UNSAFE, SAFE, normalize=False, device="cpu")
    np.testing.assert_allclose(
        step({"prompt": ["a"], "response": ["Sure."]})["gradient_score"],
        GradientScore(expected, device="cpu")({"prompt": ["a"], "response": ["Sure."]})["gradient_score"],
        rtol=1e-4,
    )


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_only_sides_that_cancel_out_are_refused_at_any_scale(model, monkeypatch, scale):
    plain = fit._gradient
    monkeypatch.setattr(fit, "_gradient", lambda *told: {name: one * scale for name, one in plain(*told).items()})
    same_start = [{"prompt": "Ask", "response": "Sure, here is what you asked for today"}]
    other_end = [{"prompt": "Ask", "response": "Sure, here is what you asked for today, and more of it"}]
    with pytest.raises(DataError, match="the same mean gradient"):
        fit_gradient(model, same_start, other_end, anchor_tokens=3, normalize=False, device="cpu")
    assert fit_gradient(model, UNSAFE, SAFE, normalize=False, device="cpu").facts["length"] > 1e-2 * scale
