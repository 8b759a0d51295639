"""Rows with any number of entries: every operation against lists of arrays, and through Arrow and back."""

import numpy as np
import pyarrow as pa
import pytest

from hf_safefilter.data.ragged import Ragged, offsets_of, ragged_from_arrow, ragged_to_arrow


def rows_of(seed, count=40, width=3, dtype=np.float32, most=4):
    """Rows of 0 to `most` vectors, as a list of arrays."""
    rng = np.random.default_rng(seed)
    shape = (width,) if width else ()
    return [rng.normal(size=(int(rng.integers(0, most + 1)), *shape)).astype(dtype) for _ in range(count)]


def same(found, rows):
    assert len(found) == len(rows)
    assert found.counts.tolist() == [len(row) for row in rows]
    for at, row in enumerate(rows):
        np.testing.assert_array_equal(found.row(at), row)


CASES = [(seed, width) for seed in range(4) for width in (0, 3)]


@pytest.mark.parametrize(("seed", "width"), CASES)
def test_rows_are_what_they_were_made_of(seed, width):
    rows = rows_of(seed, width=width)
    found = Ragged.of(rows)
    same(found, rows)
    assert found.values.dtype == np.float32 and found.offsets.dtype == np.int64
    assert found.owners.tolist() == [at for at, row in enumerate(rows) for _ in row]


def test_no_rows_and_rows_without_entries_have_the_width_and_dtype_asked_for():
    like = np.empty((7, 5), np.float16)
    for rows in ([], [like[:0]] * 3):
        found = Ragged.of(rows, like)
        assert len(found) == len(rows) and found.values.shape == (0, 5) and found.values.dtype == np.float16
        assert found.counts.tolist() == [0] * len(rows)
    assert Ragged.of([]).values.shape == (0,)


def test_one_entry_each():
    values = np.arange(6.0).reshape(3, 2)
    found = Ragged.one_each(values)
    same(found, [values[:1], values[1:2], values[2:]])
    assert found.values is values
    assert len(Ragged.one_each(values[:0])) == 0


@pytest.mark.parametrize(("seed", "width"), CASES)
def test_take(seed, width):
    rows, rng = rows_of(seed, width=width), np.random.default_rng(seed)
    found = Ragged.of(rows)
    for asked in ([], [0], [39, 0, 0], [-1, 3], rng.integers(0, 40, 200), rng.permutation(40), np.arange(40)):
        asked = np.asarray(asked, dtype=np.int64)
        same(found.take(asked), [rows[at] for at in asked])
    mask = rng.random(40) < 0.5
    same(found.take(np.flatnonzero(mask)), [row for row, chosen in zip(rows, mask, strict=True) if chosen])


@pytest.mark.parametrize(("seed", "width"), CASES)
def test_where(seed, width):
    rows, rng = rows_of(seed, width=width), np.random.default_rng(seed)
    found = Ragged.of(rows)
    chosen = rng.random(len(found.values)) < 0.5
    parts = np.split(chosen, found.offsets[1:-1])
    same(found.where(chosen), [row[part] for row, part in zip(rows, parts, strict=True)])
    same(found.where(np.ones(len(chosen), bool)), rows)
    same(found.where(np.zeros(len(chosen), bool)), [row[:0] for row in rows])


@pytest.mark.parametrize(("seed", "width"), CASES)
def test_joined(seed, width):
    parts = [rows_of(seed + 100 * number, count, width) for number, count in enumerate((5, 0, 7, 1))]
    found = Ragged.joined([Ragged.of(part, np.empty((0, width) if width else 0, np.float32)) for part in parts])
    same(found, [row for part in parts for row in part])


# The largest entry


def by_hand(row):
    """The largest entry and its place; NaN and -1 where there is none, or where one is NaN."""
    if not len(row) or any(np.isnan(row)):
        return np.nan, -1
    best = max(row.tolist())
    return best, row.tolist().index(best)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_entry_of_each_row(seed, dtype):
    rng = np.random.default_rng(seed)
    rows = [np.round(row, 0) for row in rows_of(seed, 60, 0, dtype)]  # few values, so that many are equal
    for row in rows:
        row[rng.random(len(row)) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    top, place = Ragged.of(rows).largest()
    expected = [by_hand(row) for row in rows]
    np.testing.assert_array_equal(top, np.array([best for best, _ in expected], dtype))
    assert place.tolist() == [at for _, at in expected]
    assert top.dtype == dtype and place.dtype == np.int32


def test_rows_without_entries_at_either_end_and_between():
    rows = [[], [1.0], [], [], [3.0, 2.0], [np.nan, 5.0], [], [-np.inf], []]
    top, place = Ragged.of([np.array(row, np.float32) for row in rows]).largest()
    np.testing.assert_array_equal(top, [np.nan, 1, np.nan, np.nan, 3, np.nan, np.nan, -np.inf, np.nan])
    assert place.tolist() == [-1, 0, -1, -1, 0, -1, -1, 0, -1]


def test_the_largest_of_nothing_and_of_vectors_of_one_number():
    for rows in ([], [np.empty(0, np.float32)] * 3):
        top, place = Ragged.of(rows).largest()
        assert np.isnan(top).all() and place.tolist() == [-1] * len(rows)
    flat = Ragged.of(rows_of(0, width=0))
    found = Ragged(flat.values[:, None], flat.offsets).largest()
    for one, other in zip(found, flat.largest(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="reshape"):
        Ragged.of(rows_of(0, width=2)).largest()


# Arrow


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [0, 1, 3])
def test_arrow_gives_back_what_it_was_given(dtype, width):
    rows = rows_of(1, width=width, dtype=dtype)
    given = Ragged.of(rows)
    column = ragged_to_arrow(given)
    inner = pa.list_(pa.from_numpy_dtype(dtype), width) if width else pa.from_numpy_dtype(dtype)
    assert column.type == pa.list_(inner)
    assert column.to_pylist() == [row.tolist() for row in rows]
    found = ragged_from_arrow(column)
    same(found, rows)
    assert found.values.dtype == dtype


def address(array):
    return array.__array_interface__["data"][0]


def test_values_are_not_copied_on_the_way():
    given = Ragged.of(rows_of(2))
    column = ragged_to_arrow(given)
    assert address(ragged_from_arrow(column).values) == address(given.values)
    assert address(ragged_from_arrow(pa.chunked_array([column])).values) == address(given.values)


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 7), (5, 20), (33, None), (40, None)])
def test_slices(width, start, length):
    rows = rows_of(3, width=width)
    column = ragged_to_arrow(Ragged.of(rows)).slice(start, length)
    expected = rows[start : None if length is None else start + length]
    same(ragged_from_arrow(column), expected)
    same(ragged_from_arrow(pa.chunked_array([column])), expected)
    same(ragged_from_arrow(pa.chunked_array([column, column.slice(1)])), [*expected, *expected[1:]])


@pytest.mark.parametrize("width", [0, 3])
def test_several_chunks(width):
    rows = rows_of(4, width=width)
    column = ragged_to_arrow(Ragged.of(rows))
    cuts = [0, 0, 1, 13, 13, 40]
    pieces = [column.slice(start, stop - start) for start, stop in zip(cuts, cuts[1:], strict=False)]
    same(ragged_from_arrow(pa.chunked_array(pieces)), rows)


def test_chunks_in_which_no_row_has_a_vector():
    kind = pa.list_(pa.list_(pa.float32(), 2))
    column = pa.chunked_array([pa.array(rows, kind) for rows in ([[], []], [[[1, 2]]], [], [[]])])
    found = ragged_from_arrow(column)
    assert found.counts.tolist() == [0, 0, 1, 0] and found.values.tolist() == [[1, 2]]
    for empty in (pa.chunked_array([], kind), pa.array([], kind), pa.array([[], None], kind)):
        assert ragged_from_arrow(empty).values.shape == (0, 2)
        assert len(ragged_from_arrow(empty)) == len(empty)


def test_a_null_row_has_no_entries():
    kind = pa.list_(pa.list_(pa.float32(), 2))
    column = pa.array([None, [[1, 2], [3, 4]], None, [], [[5, 6]], None], kind)
    for seen in (column, column.slice(1), pa.chunked_array([column, column.slice(2, 3)])):
        rows = [np.array(row or [], np.float32).reshape(-1, 2) for row in seen.to_pylist()]
        same(ragged_from_arrow(seen), rows)
    flat = pa.array([None, [1.5], [2.5, 3.5]], pa.list_(pa.float32()))
    same(ragged_from_arrow(flat), [np.empty(0), np.array([1.5]), np.array([2.5, 3.5])])


def test_a_null_vector_is_nan_and_keeps_its_place():
    column = pa.array([[[1, 2], None], None, [None], [[3, 4]]], pa.list_(pa.list_(pa.float32(), 2)))
    nothing = [np.nan, np.nan]
    same(ragged_from_arrow(column), [np.array([[1, 2], nothing]), np.empty((0, 2)), np.array([nothing]), [[3, 4]]])


def test_where_rows_begin():
    assert offsets_of(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]
    assert offsets_of(np.array([], dtype=np.int64)).tolist() == [0]
