"""Standardised coordinates against NumPy in float64, and scores in them against the plain formulas."""

import numpy as np
import pytest
from datasets.fingerprint import Hasher
from stand_in import WIDTH, StandIn, safe_rows, unsafe_rows

from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.coordinates import Coordinates
from hf_safefilter.references.standard_scaling import Scaling
from hf_safefilter.scores.anchors import AnchorScore, anchor
from hf_safefilter.scores.direction import DirectionScore, projection
from hf_safefilter.scores.larf import LarfScore, larf
from hf_safefilter.scores.nearest import NearestScore, nearest

SCORES = {
    "larf": (LarfScore, {}, larf),
    "larf_top": (LarfScore, {"top": 4}, lambda x, u, s: larf(x, u, s, top=4)),
    "anchor": (AnchorScore, {}, lambda x, u, s: anchor(x, u)),
    "nearest": (NearestScore, {"k": 3}, lambda x, u, s: nearest(x, u, s, k=3)),
    "direction": (DirectionScore, {}, projection),
    "lda": (DirectionScore, {"form": "lda"}, lambda x, u, s: projection(x, u, s, "lda")),
}


def vectors_of(count: int, seed: int, width: int = 9) -> np.ndarray:
    """Float32 vectors whose coordinates have unlike means and deviations."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(count, width)) * np.geomspace(0.1, 300, width) + 1000).astype(np.float32)


def by_hand(*sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate(sides).astype(np.float64)
    return both.mean(axis=0), both.std(axis=0)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))


@pytest.fixture
def index(store):
    """References of which one coordinate is far larger than all others, as in the states of an LLM."""
    return ReferenceIndex.build(
        unsafe_rows(), safe_rows(), StandIn(change=lambda vectors: vectors + 900 * np.eye(1, WIDTH, 11)),
        license="mit", source="the tests",
    )  # fmt: skip


def test_mean_and_deviation_are_those_of_both_sides_in_float64():
    unsafe, safe = vectors_of(40, 0), vectors_of(25, 1)
    mean, deviation = by_hand(unsafe, safe)
    scaling = Scaling.of(unsafe, safe)
    np.testing.assert_allclose(scaling.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(scaling.deviation, deviation, rtol=1e-6)
    rows = vectors_of(7, 2)
    np.testing.assert_allclose(scaling(rows), (rows - mean) / deviation, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scaling(rows.astype(np.float64)), (rows - mean) / deviation, rtol=1e-4, atol=1e-3)
    placed = np.concatenate([scaling(unsafe), scaling(safe)])
    np.testing.assert_allclose(placed.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(placed.std(axis=0), 1, rtol=1e-3)


@pytest.mark.parametrize(("given", "found"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_numbers_are_at_least_float32(given, found):
    unsafe, safe = (side.astype(given) for side in (vectors_of(5, 0), vectors_of(5, 1)))
    scaling = Scaling.of(unsafe, safe)
    assert scaling.mean.dtype == scaling.deviation.dtype == scaling(unsafe).dtype == found


def test_a_small_deviation_beside_a_large_mean_is_not_lost():
    draw = np.random.default_rng(3)
    unsafe, safe = ((1e4 + draw.normal(size=(2000, 4))).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(Scaling.of(unsafe, safe).deviation, by_hand(unsafe, safe)[1], rtol=1e-6)


def test_a_constant_coordinate_does_not_blow_up():
    unsafe, safe = vectors_of(20, 0), vectors_of(20, 1)
    unsafe[:, 4] = safe[:, 4] = 5
    scaling = Scaling.of(unsafe, safe)
    deviation = by_hand(unsafe, safe)[1]
    assert deviation[4] == 0
    assert scaling.deviation[4] == pytest.approx(1e-3 * np.median(deviation))
    assert (scaling(unsafe)[:, 4] == 0).all()
    np.testing.assert_allclose(np.delete(scaling.deviation, 4), np.delete(deviation, 4), rtol=1e-6)


@pytest.mark.parametrize("constant", [5, 9])
def test_references_that_are_all_equal_are_an_error(constant):
    unsafe, safe = vectors_of(20, 0), vectors_of(20, 1)
    unsafe[:, :constant] = safe[:, :constant] = 5
    with pytest.raises(DataError, match="most coordinates are the same in all references"):
        Scaling.of(unsafe, safe)
    with pytest.raises(DataError, match="most coordinates"):
        Coordinates.of(unsafe, safe, True)
    assert Coordinates.of(unsafe, safe, False).scaling is None


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_the_plain_formula_on_vectors_standardised_by_hand(index, name):
    kind, options, formula = SCORES[name]
    rows = vectors_of(30, 5, WIDTH).astype(np.float16)
    unsafe, safe = index.vectors(2)
    mean, deviation = by_hand(unsafe, safe)
    expected = formula(*((vectors.astype(np.float64) - mean) / deviation for vectors in (rows, unsafe, safe)))
    step = kind(index, 2, **options)
    found = step({"emb_layer_2": rows})[f"{step.METHOD}_score"]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-4 * max(1, np.abs(expected).max()))
    assert step.record()["standardize"] is True


@pytest.mark.parametrize("name", SCORES)
def test_without_it_scores_are_the_papers_formula(index, name):
    kind, options, formula = SCORES[name]
    rows = vectors_of(30, 5, WIDTH).astype(np.float16)
    expected = formula(*(vectors.astype(np.float64) for vectors in (rows, *index.vectors(2))))
    step = kind(index, 2, standardize=False, **options)
    found = step({"emb_layer_2": rows})[f"{step.METHOD}_score"]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["larf", "anchor", "nearest"])
def test_a_coordinate_that_rules_every_cosine_does_so_no_longer(index, name):
    kind, options, _ = SCORES[name]
    unsafe, safe = (side.astype(np.float16) for side in index.vectors(2))

    def gap(standardize):
        step = kind(index, 2, standardize=standardize, **options)
        high, low = (step({"emb_layer_2": side})[f"{step.METHOD}_score"] for side in (unsafe, safe))
        return high.min() - low.max()

    assert gap(True) > 0.5
    assert gap(False) < 0.01


def test_it_is_part_of_the_step(index):
    steps = [LarfScore(index, 2), LarfScore(index, 2, standardize=False)]
    assert steps[0] != steps[1] and Hasher.hash(steps[0]) != Hasher.hash(steps[1])


def test_stored_references_are_as_the_model_has_them(index, tmp_path):
    before = [side.copy() for side in index.vectors(2)]
    LarfScore(index, 2)({"emb_layer_2": vectors_of(3, 5, WIDTH)})
    again = ReferenceIndex.load(index.save(tmp_path / "saved"))
    for side, expected in zip(again.vectors(2), before, strict=True):
        np.testing.assert_array_equal(side, expected)
    assert 800 < before[0][:, 11].mean() < 1000
