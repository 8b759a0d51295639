"""Spans as a column: through Arrow, through plain values, and refused where they are something else."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.spans import SPAN, SPANS_TYPE, spans_from_arrow, spans_of, spans_to_arrow
from hf_safefilter.errors import DataError


def rows_of(seed, count=30):
    """Rows of 0 to 3 spans each, as lists of tuples."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 1000, (count, 3, 3)).tolist()
    return [
        [(turn, bool(start % 2), start, stop) for turn, start, stop in row[: int(rng.integers(0, 4))]]
        for row in numbers
    ]


def ragged(rows):
    return Ragged.of([np.array(row, SPAN) for row in rows], np.empty(0, SPAN))


def dicts(rows):
    return [[dict(zip(SPAN.names, span, strict=True)) for span in row] for row in rows]


def same(found, rows):
    assert len(found) == len(rows) and found.values.dtype == SPAN
    assert [found.row(at).tolist() for at in range(len(rows))] == rows


def test_arrow_and_back():
    rows = rows_of(0)
    column = spans_to_arrow(ragged(rows))
    assert column.type == SPANS_TYPE
    assert column.to_pylist() == dicts(rows)
    same(spans_from_arrow(column), rows)


def test_slices_chunks_and_nulls():
    rows = rows_of(1)
    column = spans_to_arrow(ragged(rows))
    same(spans_from_arrow(column.slice(4, 11)), rows[4:15])
    same(spans_from_arrow(pa.chunked_array([column.slice(0, 9), column.slice(9, 0), column.slice(9)])), rows)
    same(spans_from_arrow(pa.chunked_array([], SPANS_TYPE)), [])
    holes = pa.array([None, dicts(rows)[0], None], SPANS_TYPE)
    same(spans_from_arrow(holes), [[], rows[0], []])


def test_structs_in_another_order_or_of_wider_numbers():
    """As a data set has them that was written by other hands, or mapped in another format."""
    rows = rows_of(2)
    kind = pa.list_(
        pa.struct([("stop", pa.int64()), ("start", pa.int64()), ("rejected", pa.bool_()), ("turn", pa.int64())])
    )
    same(spans_from_arrow(pa.array(dicts(rows), kind)), rows)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2]]),
        pa.array([[{"turn": 1, "rejected": False, "start": 0}]]),
        pa.array([[{"turn": "one", "rejected": False, "start": 0, "stop": 1}]]),
        pa.array(["spans"]),
    ],
)
def test_what_is_no_column_of_spans_is_refused(column):
    with pytest.raises(DataError, match="does not say what was read"):
        Batch(pa.table({"spans": column})).spans()


def test_plain_values():
    rows = rows_of(3)
    same(spans_of(dicts(rows)), rows)
    same(spans_of([None, dicts(rows)[0], []]), [[], rows[0], []])
    same(spans_of([]), [])


def test_a_batch_of_any_form_has_the_same_spans():
    rows = [row for row in rows_of(4) if row]
    table = Dataset.from_dict({"row_id": [f"{at}" for at in range(len(rows))], "spans": dicts(rows)})
    for kind in (None, "arrow", "numpy", "torch", "pandas"):
        same(Batch((table.with_format(kind) if kind else table)[:]).spans(), rows)
    same(Batch(table[0]).spans(), rows[:1])
    assert Batch({"row_id": ["a"]}).spans() is None


@pytest.mark.parametrize("cells", [[5], [["a"]], [[{"turn": 1}]], ["text"]])
def test_plain_values_that_are_no_spans_are_refused(cells):
    with pytest.raises(DataError, match="does not say what was read"):
        Batch({"row_id": ["a"], "spans": cells}).spans()
