"""The probe is linear discriminant analysis as scikit-learn has it, over layers, with labelled rows, and one file."""

import numpy as np
import pytest
from datasets import Dataset
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from stand_in import StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter.errors import DataError, IntegrityError, MissingError, OptionError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.probe import Probe, ProbeScore, fit_probe
from hf_safefilter.scores.probe.discriminant import Examples, lda

FACTS = {"license": "mit", "source": "the tests"}
TEXTS = ["Sure, go on.", "Sorry, no.", "The sky is blue.", "Sure. Sorry."]


def benign_rows(count=10):
    return [{"prompt": f"Tell me {n}", "response": f"The answer is {n}."} for n in range(count)]


@pytest.fixture(scope="module")
def plain():
    return ReferenceIndex.build(unsafe_rows(20), safe_rows(15), StandIn((2, 3)), **FACTS)


def standard(index, layer=2):
    both = np.concatenate(index.vectors(layer)).astype(np.float64)
    return both.mean(axis=0), both.std(axis=0)


def test_it_is_lda_as_scikit_learn_has_it(plain):
    mean, deviation = standard(plain)
    unsafe, safe = ((side - mean) / deviation for side in plain.vectors(2))
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=[0.5, 0.5])
    other.fit(np.concatenate([unsafe, safe]), np.repeat([1, 0], [len(unsafe), len(safe)]))
    rows = np.array([vector_of(text) for text in TEXTS])
    expected = other.decision_function((rows - mean) / deviation)
    inside = other.decision_function(np.concatenate([unsafe, safe]))
    weights = np.repeat([0.5 / len(unsafe), 0.5 / len(safe)], [len(unsafe), len(safe)])
    spread = np.sqrt(np.average((inside - np.average(inside, weights=weights)) ** 2, weights=weights))
    np.testing.assert_allclose(fit_probe(plain, 2).score(rows), expected / spread, rtol=1e-6)


def test_it_is_logistic_regression_as_scikit_learn_has_it(plain):
    mean, deviation = standard(plain)
    unsafe, safe = ((side - mean) / deviation for side in plain.vectors(2))
    other = LogisticRegression(C=0.5, max_iter=5000, class_weight="balanced", tol=1e-8)
    other.fit(np.concatenate([unsafe, safe]), np.repeat([1, 0], [len(unsafe), len(safe)]))
    rows = np.array([vector_of(text) for text in TEXTS])
    found = fit_probe(plain, 2, form="logistic", strength=0.5).score(rows)
    expected = other.decision_function((rows - mean) / deviation)
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-3)


@pytest.mark.parametrize("count", [5, 40])
def test_fewer_and_more_examples_than_dimensions_are_solved_alike(count):
    draw = np.random.default_rng(count)
    examples = Examples(
        draw.normal(size=(count, 16)) + np.arange(count)[:, None] % 2,
        np.arange(count) % 2 == 1,
        draw.uniform(1, 2, count),
        np.arange(count),
    )
    direction, offset = lda(examples, 0.2)
    shares = examples.balanced() / count
    means = [np.average(examples.vectors[s], axis=0, weights=shares[s]) for s in (examples.unsafe, ~examples.unsafe)]
    centred = examples.vectors - np.where(examples.unsafe[:, None], *means)
    covariance = (shares[:, None] * centred).T @ centred
    shrunk = 0.8 * covariance + 0.2 * np.trace(covariance) / 16 * np.eye(16)
    np.testing.assert_allclose(direction, np.linalg.solve(shrunk, means[0] - means[1]), rtol=1e-7)
    assert direction @ (means[0] + means[1]) / 2 + offset == pytest.approx(0, abs=1e-9)


def test_refusals_weigh_twice_as_much_as_ordinary_rows(plain):
    index = ReferenceIndex.build(unsafe_rows(20), safe_rows(10), StandIn((2,)), benign=benign_rows(40), **FACTS)
    assert (index.benign, index.counts["safe"]) == (40, 50)
    repeated = [{**row, "prompt": f"{row['prompt']} {n}"} for n in range(8) for row in safe_rows(10)]
    alike = ReferenceIndex.build(unsafe_rows(20), repeated + benign_rows(40), StandIn((2,)), **FACTS)
    rows = np.array([vector_of(text) for text in TEXTS])
    one, other = (fit_probe(references, 2).directions[0] for references in (index, alike))
    # the same weights, but for the coordinates, which go by the examples as they are
    assert np.corrcoef(one, other)[0, 1] > 0.99
    assert not np.allclose(fit_probe(index, 2).score(rows), fit_probe(plain, 2).score(rows))


def test_the_weights_are_two_thirds_for_refusals_whatever_their_number():
    from hf_safefilter.data.ragged import Ragged, offsets_of
    from hf_safefilter.scores.probe.fit import _examples

    counts = np.array([1, 3, 2, 2, 1])  # spans of two refusals and three ordinary rows
    safe = Ragged(np.zeros((9, 4)), offsets_of(counts))
    benign = np.array([False, False, True, True, True])
    examples = _examples(Ragged(np.ones((2, 4)), np.arange(3)), safe, benign)
    weights = examples.balanced()[2:]
    rows = np.bincount(safe.owners, weights)
    assert rows[:2].sum() == pytest.approx(2 * rows[2:].sum())
    assert rows[0] == pytest.approx(rows[1]) and rows[2] == pytest.approx(rows[4])  # however many spans a row has


def test_several_layers_are_averaged(plain):
    rows = np.concatenate([np.array([vector_of(text, layer) for text in TEXTS]) for layer in (2, 3)], axis=1)
    each = [fit_probe(plain, layer).score(part) for layer, part in zip((2, 3), np.split(rows, 2, axis=1), strict=True)]
    np.testing.assert_allclose(fit_probe(plain, [2, 3]).score(rows), np.mean(each, axis=0), rtol=1e-9)


def embedded(texts, labels=None):
    columns = {"emb_layer_2": [[vector_of(part).tolist() for part in text.split("|")] for text in texts]}
    return Dataset.from_dict(columns | ({"label": labels} if labels else {}))


def test_labelled_rows_move_the_boundary(plain):
    texts = [f"The sky {n}." for n in range(30)] + [f"Sorry, {n}." for n in range(30)]
    labeled = embedded(texts, ["unsafe"] * 30 + ["safe"] * 30)
    before, after = fit_probe(plain, 2), fit_probe(plain, 2, labeled=labeled)
    rows = np.array([vector_of(f"The sky {n}.") for n in range(40, 60)])
    assert after.score(rows).mean() > before.score(rows).mean()
    assert after.facts["counts"] == {"unsafe": 20, "safe": 15, "labeled_unsafe": 30, "labeled_safe": 30}
    strong = fit_probe(plain, 2, labeled=labeled, weight=100)
    assert strong.score(rows).mean() > after.score(rows).mean()


def test_a_window_counts_half_and_its_answer_half(plain):
    probe = fit_probe(plain, 2)
    row = ["Sorry, a.", "Sure, b.", "Sorry, c."]
    scores = probe.score(np.array([vector_of(part) for part in row]))
    found = ProbeScore(probe)(embedded(["|".join(row)])[:])
    assert found["probe_score"][0] == pytest.approx((scores.max() + scores.mean()) / 2, rel=1e-5)
    assert found["probe_span"][0] == 1


def test_what_makes_no_sense_is_said(plain):
    with pytest.raises(OptionError, match="names no layer"):
        fit_probe(plain, [])
    with pytest.raises(OptionError, match="form"):
        fit_probe(plain, 2, form="tree")
    with pytest.raises(MissingError, match="no layer 7"):
        fit_probe(plain, 7)
    with pytest.raises(DataError, match="both kinds"):
        fit_probe(plain, 2, labeled=embedded(["Sure.", "Sorry."], ["safe", "safe"]))
    other = Dataset.from_dict({"emb_layer_2": [[[1.0] * 3], [[0.5] * 3]], "label": ["unsafe", "safe"]})
    with pytest.raises(OptionError, match="another model"):
        fit_probe(plain, 2, labeled=other)


def test_it_is_saved_and_verified(plain, tmp_path):
    probe = fit_probe(plain, 2)
    folder = probe.save(tmp_path / "probe")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "probe.safetensors"}
    assert Probe.load(folder).digest == probe.digest
    (folder / "probe.safetensors").write_bytes((folder / "probe.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError):
        Probe.load(folder)
