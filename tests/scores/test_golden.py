"""Published formulas on small vectors, in float64; and every step against a plain loop over its definition."""

import json

import numpy as np
import pytest
from datasets.fingerprint import Hasher
from stand_in import StandIn, safe_rows, unsafe_rows

from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.anchors import AnchorScore, anchor
from hf_safefilter.scores.direction import DirectionScore, projection
from hf_safefilter.scores.larf import LarfScore, larf
from hf_safefilter.scores.nearest import NearestScore, nearest

X = np.array([[1, 2, 3], [2, 0, -1], [-1, 1, 0], [0, 3, 1]], dtype=np.float64)
U = np.array([[1, 0, 1], [0, 2, 2]], dtype=np.float64)
S = np.array([[0, 1, 0], [-1, 0, 1]], dtype=np.float64)

LARF_ALL = [0.3941765859, 0.4743416490, -0.6035533906, -0.0271280535]


def exact(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_larf():
    exact(larf(X, U, S), LARF_ALL)
    exact(larf(X, U, S, top=2), LARF_ALL)
    exact(larf(X, U, S[::-1], top=2), LARF_ALL)
    exact(larf(X, U, S, top=1), [0.5669467095, 0.6324555320, 0.0, 0.6708203932])
    exact(larf(X, U, S[::-1], top=1), [0.4103886987, 1.2649110641, -0.2071067812, 0.0])


def test_anchor():
    exact(anchor(X, U, 1), [0.9449111825, 0.3162277660, 0.5, 0.8944271910])
    exact(anchor(X, U, 2), [0.8504200643, 0.0, 0.0, 0.5590169944])


def test_nearest():
    exact(nearest(X, U, S, k=1), [0.4103886987, 0.3162277660, -0.2071067812, -0.0542561071])


def test_direction():
    exact(projection(X, U, S), [3.3333333333, 0.6666666667, -0.3333333333, 1.6666666667])
    exact(projection(X, U, S, "lda", 0.1), [161.8596491228, 0.3157894737, -106.2105263158, 4.1052631579])


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def by_definition(row, unsafe, safe):
    """Every score of one row, one cosine at a time."""
    near = sorted((cosine(row, one) for one in unsafe), reverse=True)
    far = sorted((cosine(row, one) for one in safe), reverse=True)
    pairs = sorted((cosine(row, u) - cosine(row, s) for u, s in zip(unsafe, safe, strict=True)), reverse=True)
    toward = np.mean(unsafe, axis=0) - np.mean(safe, axis=0)
    within = np.concatenate([unsafe - np.mean(unsafe, axis=0), safe - np.mean(safe, axis=0)])
    covariance = within.T @ within / len(within)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / len(row) * np.eye(len(row))

    def distance(mean):
        return (row - mean) @ np.linalg.solve(shrunk, row - mean)

    return {
        "larf": np.mean(near) - np.mean(far),
        "larf_top": np.mean(pairs[:4]),
        "anchor": near[0],
        "anchor_top": np.mean(near[:5]),
        "nearest": np.mean(near[:5]) - np.mean(far[:5]),
        "direction": row @ toward / np.linalg.norm(toward),
        "lda": distance(np.mean(safe, axis=0)) - distance(np.mean(unsafe, axis=0)),
    }


def test_steps_agree_with_the_definitions(index):
    vectors = np.random.default_rng(5).normal(size=(700, 16)).astype(np.float16)  # more than one piece
    unsafe, safe = (side.astype(np.float64) for side in index.vectors(2))
    expected = [by_definition(row, unsafe, safe) for row in vectors.astype(np.float64)]
    plain = {"references": index, "layer": 2, "standardize": False}  # as the papers have it
    steps = {
        "larf": LarfScore(**plain),
        "larf_top": LarfScore(**plain, top=4),
        "anchor": AnchorScore(**plain),
        "anchor_top": AnchorScore(**plain, top=5),
        "nearest": NearestScore(**plain),
        "direction": DirectionScore(**plain),
        "lda": DirectionScore(**plain, form="lda"),
    }
    for name, step in steps.items():
        found = step({"emb_layer_2": vectors})[step.produces()[0]]
        one_by_one = np.array([row[name] for row in expected])
        atol = 1e-6 * max(1, np.abs(one_by_one).max())  # lda subtracts large squares
        np.testing.assert_allclose(found, one_by_one, rtol=2e-5, atol=atol, err_msg=name)


def test_nearest_names_the_rows(index):
    vectors = np.random.default_rng(6).normal(size=(9, 16)).astype(np.float32)
    vectors[4] = 0
    found = NearestScore(index, 2, k=3, standardize=False)({"emb_layer_2": vectors})["nearest_unsafe"]
    ids = [row.row_id for row in index.rows("unsafe")]
    for at, row in enumerate(vectors):
        if at == 4:
            assert found[at].tolist() == ["", "", ""]
        else:
            order = np.argsort([-cosine(row, one) for one in index.vectors(2)[0]])[:3]
            assert found[at].tolist() == [ids[one] for one in order]


def test_large_vectors_in_float16_do_not_overflow(index):
    vectors = np.full((2, 16), 65504, np.float16)
    vectors[1] = 6e-8  # the smallest float16
    for kind in (LarfScore, AnchorScore, NearestScore):
        step = kind(index, 2, standardize=False)
        found = step({"emb_layer_2": vectors})[step.produces()[0]]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.fixture(scope="module")
def lopsided():
    return ReferenceIndex.build(unsafe_rows(9), safe_rows(4), StandIn(), license="mit", source="the tests")


def test_unequal_sides_are_fine_where_no_pairs_are_needed(lopsided):
    vectors = np.random.default_rng(7).normal(size=(5, 16))
    expected = larf(vectors, *lopsided.vectors(2))
    step = LarfScore(lopsided, 2, standardize=False)
    np.testing.assert_allclose(step({"emb_layer_2": vectors})["larf_score"], expected, atol=1e-6)


def test_options_that_make_no_sense(index, lopsided):
    with pytest.raises(DataError, match=r"equally many rows[\s\S]*9 unsafe, 4 safe"):
        LarfScore(lopsided, 2, top=2)
    for top in (0, 13, True, 1.5):
        with pytest.raises(OptionError, match="from 1 to 12"):
            LarfScore(index, 2, top=top)
    with pytest.raises(OptionError, match="from 1 to 12"):
        AnchorScore(index, 2, top=13)
    with pytest.raises(OptionError, match=r"`k=5` does not fit 4 safe references"):
        NearestScore(lopsided, 2)
    with pytest.raises(OptionError, match="mean_difference, lda"):
        DirectionScore(index, 2, form="pca")
    for shrinkage in (0, 1.1, float("nan")):
        with pytest.raises(OptionError, match="shrinkage"):
            DirectionScore(index, 2, form="lda", shrinkage=shrinkage)


def test_lda_needs_variance_and_a_difference():
    one = np.ones((1, 3))
    with pytest.raises(DataError, match="variance"):
        projection(X, one, -one, "lda")
    with pytest.raises(DataError, match="same mean"):
        projection(X, U, U[::-1])


def test_a_numpy_number_is_the_same_option_as_a_python_one(index):
    plain, numpy = LarfScore(index, 2, top=4), LarfScore(index, np.int64(2), top=np.int64(4))
    assert Hasher.hash(numpy) == Hasher.hash(plain)
    assert json.dumps(numpy.record()) == json.dumps(plain.record())
