"""One view over every host, and exact types handed back to each."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value

from hf_safefilter.data.batch import Batch, arrow_vectors
from hf_safefilter.errors import DataError, MissingError

VECTORS = np.arange(12, dtype=np.float16).reshape(3, 4)


@pytest.fixture
def rows() -> Dataset:
    features = Features({"text": Value("string"), "emb_layer_2": List(Value("float16"), length=4)})
    return Dataset.from_dict({"text": ["a", "b", "c"], "emb_layer_2": VECTORS.tolist()}, features=features)


def add_columns(batch):
    view = Batch(batch)
    seen = view.vectors("emb_layer_2").astype(np.float32)
    return view.emit(
        {
            "emb_layer_9": (seen * 2).astype(np.float16),
            "sum_score": seen.sum(axis=1),
            "why": np.asarray([f"row {text}" for text in view.cells("text")], dtype=object),
            "names": np.asarray([[text, text] for text in view.cells("text")]),
        }
    )


EXPECTED = Features(
    {
        "text": Value("string"),
        "emb_layer_2": List(Value("float16"), length=4),
        "emb_layer_9": List(Value("float16"), length=4),
        "sum_score": Value("float32"),
        "why": Value("string"),
        "names": List(Value("string"), length=2),
    }
)


@pytest.mark.parametrize(
    ("options", "arrow"),
    [
        ({"batched": True, "batch_size": 2}, False),
        ({"batched": True, "batch_size": 2}, True),
        ({"batched": False}, False),
    ],
)
def test_map_keeps_fixed_sizes_and_dtypes_without_features_being_passed(rows, options, arrow):
    done = (rows.with_format("arrow") if arrow else rows).map(add_columns, **options).with_format(None)
    assert done.features == EXPECTED
    assert done["sum_score"][:] == [6.0, 22.0, 38.0]
    assert done[1]["emb_layer_9"] == (VECTORS[1] * 2).tolist()
    assert done[2]["why"] == "row c"
    assert done[2]["names"] == ["c", "c"]


def test_streams_dicts_and_dataset_dicts_give_the_same_values(rows):
    expected = [6.0, 22.0, 38.0]
    streamed = rows.to_iterable_dataset().map(add_columns, batched=True, batch_size=2)
    assert [row["sum_score"] for row in streamed] == expected
    assert [row["sum_score"] for row in rows.to_iterable_dataset().map(add_columns)] == expected
    assert DatasetDict(a=rows).map(add_columns, batched=True)["a"]["sum_score"][:] == expected
    plain = add_columns({"text": ["a", "b", "c"], "emb_layer_2": VECTORS})
    assert plain["sum_score"].tolist() == expected
    assert plain["emb_layer_9"].dtype == np.float16
    row = add_columns({"text": "b", "emb_layer_2": VECTORS[1].tolist()})
    assert row["sum_score"] == expected[1]
    assert row["why"] == "row b"


def test_vectors_come_out_of_arrow_without_a_copy(rows):
    chunk = rows.data.column("emb_layer_2").chunks[0]
    seen = arrow_vectors(pa.chunked_array([chunk]))
    assert seen.__array_interface__["data"][0] == chunk.flatten().buffers()[1].address
    assert seen.dtype == np.float16


def test_offsets_of_a_slice_are_honoured(rows):
    assert np.array_equal(arrow_vectors(rows.data.column("emb_layer_2").slice(1, 2)), VECTORS[1:])
    listed = pa.array(VECTORS.tolist(), pa.list_(pa.float32())).slice(1)
    assert np.array_equal(arrow_vectors(listed), VECTORS[1:])


def test_a_null_row_becomes_nan_and_keeps_its_place():
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float32())):
        seen = arrow_vectors(pa.array([[1, 2], None, [3, 4]], kind))
        assert np.array_equal(seen[[0, 2]], [[1, 2], [3, 4]])
        assert np.isnan(seen[1]).all()
    assert np.isnan(Batch({"x": [[1.0, 2.0], None]}).vectors("x")[1]).all()


def test_numbers_turn_nulls_into_nan():
    table = pa.table({"s": pa.array([1.5, None], pa.float32())})
    for batch in (Batch(table), Batch({"s": [1.5, None]})):
        assert batch.numbers("s")[0] == 1.5
        assert np.isnan(batch.numbers("s")[1])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"e": [[1.0, 2.0], [1.0]]}, "vectors"),
        ({"e": ["one", "two"]}, "vectors"),
        (pa.table({"e": ["one"]}), "not vectors"),
        (pa.table({"e": pa.array([[1.0], [1.0, 2.0]])}), "different lengths"),
    ],
)
def test_what_is_no_vector_column_is_said(data, what):
    with pytest.raises(DataError, match=what):
        Batch(data).vectors("e")


def test_a_missing_column_names_the_ones_that_are_there():
    with pytest.raises(MissingError, match="found: e"):
        Batch({"e": [1]}).require("emb_layer_3", "embed the rows")


def test_rows_and_batches_are_told_apart_even_without_text():
    assert Batch({"messages": [{"role": "user", "content": "hi"}]}).n == 1
    assert Batch({"messages": [[{"role": "user", "content": "hi"}]] * 2}).n == 2
    assert Batch({"emb_layer_1": [0.5, 0.5]}).n == 1
    assert Batch({"emb_layer_1": [[0.5, 0.5]]}).n == 1
    assert Batch({"text": []}).n == 0
    with pytest.raises(DataError, match="handed a list"):
        Batch(["a"])
