"""The rows to ask for are in doubt, apart from each other, and never the same twice."""

import numpy as np
import pytest

from hf_safefilter.labeling.choose_rows import TEMPERATURE, doubts, next_rows


def test_doubt_is_four_p_one_minus_p_around_the_middle_of_all_rows_before_the_first_label():
    scores = np.array([-1.0, 0.0, 3.0, 4.0, 9.0])
    p = 1 / (1 + np.exp(-(scores - 3.0) / TEMPERATURE))
    np.testing.assert_allclose(doubts(scores, np.full(5, np.nan)), 4 * p * (1 - p), rtol=1e-9)


def test_the_boundary_lies_between_the_rows_labelled_unsafe_and_safe():
    scores = np.array([0.0, 1.0, 2.0, 6.0, 8.0], np.float32)
    truth = np.array([0.0, np.nan, np.nan, 1.0, 1.0])
    p = 1 / (1 + np.exp(-(scores.astype(float) - 3.5) / TEMPERATURE))
    np.testing.assert_allclose(doubts(scores, truth), 4 * p * (1 - p), rtol=1e-6)
    one_kind = doubts(scores, np.array([0.0, 0, 0, np.nan, np.nan]))
    assert one_kind.argmax() == 0 and one_kind[0] == 1.0


def test_a_row_without_a_score_is_not_in_doubt_nor_one_far_away():
    found = doubts(np.array([np.nan, 0.0, 1e6], np.float32), np.full(3, np.nan))
    assert found[0] == 0 and np.isfinite(found).all()


def brute_force(doubt, vectors, asked, count):
    points = (vectors - vectors.mean(0)) / vectors.std(0)
    taken = list(np.flatnonzero(asked))
    chosen = []
    for _ in range(count):
        worth = [
            -1.0
            if row in taken
            else doubt[row] * min([float(np.linalg.norm(points[row] - points[other])) for other in taken] or [1.0])
            for row in range(len(points))
        ]
        taken.append(int(np.argmax(worth)))
        chosen.append(taken[-1])
    return chosen


@pytest.mark.parametrize("before", [0, 3])
def test_it_is_farthest_first_weighted_by_doubt(before):
    draw = np.random.default_rng(before)
    vectors, doubt = draw.normal(size=(40, 5)), draw.uniform(size=40)
    asked = np.zeros(40, bool)
    asked[draw.permutation(40)[:before]] = True
    assert next_rows(doubt, vectors, asked, 10).tolist() == brute_force(doubt, vectors, asked, 10)


def test_large_coordinates_do_not_rule():
    draw = np.random.default_rng(1)
    vectors, doubt = draw.normal(size=(40, 5)), np.ones(40)
    scaled = vectors * [1000, 1, 1, 1, 0.001]
    assert (
        next_rows(doubt, scaled, np.zeros(40, bool)).tolist() == next_rows(doubt, vectors, np.zeros(40, bool)).tolist()
    )


def test_copies_and_rows_without_doubt_are_never_asked_for():
    vectors = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    doubt = np.array([1.0, 1.0, 0.5, 0.4, 0.0])
    assert next_rows(doubt, vectors, np.zeros(5, bool)).tolist() in ([0, 2, 3], [0, 3, 2])
    assert next_rows(doubt, vectors, np.array([0, 1, 0, 0, 0], bool)).tolist() in ([2, 3], [3, 2])
    assert next_rows(np.zeros(5), vectors, np.zeros(5, bool)).tolist() == []
    assert next_rows(np.empty(0), np.empty((0, 2)), np.empty(0, bool)).tolist() == []


def test_copies_that_differ_by_rounding_are_not_asked_for_either():
    """A batch of another size rounds otherwise; and so does the distance of a vector to its own copy."""
    rng = np.random.default_rng(0)
    three = rng.normal(size=(3, 300)).astype(np.float32)
    copies = np.concatenate([three] * 5)
    copies[3:] *= 1 + rng.normal(scale=1e-7, size=(12, 1)).astype(np.float32)
    chosen = next_rows(np.ones(15), copies, np.zeros(15, dtype=bool), count=15)
    assert sorted(chosen % 3) == [0, 1, 2]
