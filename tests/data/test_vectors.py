"""Pieces in order, unit rows, and nothing scored by accident."""

import numpy as np
import pytest

from hf_safefilter.data.vectors import PIECE, by_piece, lengths, mean_of_largest, unit, widen


@pytest.mark.parametrize("count", [0, 1, PIECE, PIECE + 1, 5 * PIECE - 3])
def test_pieces_come_back_in_order(count):
    vectors = np.arange(count * 2, dtype=np.float16).reshape(count, 2)
    sizes = []
    found = by_piece(vectors, lambda piece: (sizes.append(len(piece)), piece.copy())[1])
    np.testing.assert_array_equal(np.concatenate(found), vectors.astype(np.float32))
    assert found[0].dtype == np.float32 and max(sizes) <= PIECE and len(sizes) == max(1, -(-count // PIECE))


def test_an_error_in_a_piece_is_the_callers():
    def fail(piece):
        raise ValueError("in a piece")

    with pytest.raises(ValueError, match="in a piece"):
        by_piece(np.zeros((3, 2)), fail)


def test_dtypes_are_widened_never_narrowed():
    for given, kept in (("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int8", "float32")):
        assert widen(np.zeros(3, given)).dtype == kept


def test_unit_rows():
    rows = np.random.default_rng(0).normal(size=(9, 5))
    np.testing.assert_allclose(unit(rows) * np.sqrt((rows**2).sum(axis=1))[:, None], rows, rtol=1e-14)
    rows[2], rows[3, 1], rows[4] = 0, np.inf, 1e200  # the last one's square is beyond float64
    assert np.isnan(unit(rows)).any(axis=1).tolist() == [False, False, True, True, True] + [False] * 4
    assert np.isnan(lengths(rows)).tolist() == [False, False, True, True, True] + [False] * 4


def test_mean_of_largest():
    values = np.array([[1.0, 5, 3], [9, -1, 0], [np.nan, 1, 2]])
    np.testing.assert_allclose(mean_of_largest(values, 2), [4, 4.5, np.nan])
    np.testing.assert_allclose(mean_of_largest(values[:2], 3), values[:2].mean(axis=1))
