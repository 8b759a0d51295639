"""One view over every host, and exact types handed back to each."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.table import InMemoryTable
from stand_in import safe_rows, unsafe_rows

from hf_safefilter.data.batch import Batch, arrow_vectors
from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.spans import SPAN
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.larf import LarfScore

VECTORS = np.arange(12, dtype=np.float16).reshape(3, 4)
MANY = Ragged(np.arange(20, dtype=np.float16).reshape(5, 4), np.array([0, 2, 2, 5]))
"""Two vectors, none, and three."""


@pytest.fixture
def rows() -> Dataset:
    features = Features({"text": Value("string"), "emb_layer_2": List(Value("float16"), length=4)})
    return Dataset.from_dict({"text": ["a", "b", "c"], "emb_layer_2": VECTORS.tolist()}, features=features)


def spans_for(vectors: Ragged) -> Ragged:
    spans = np.zeros(len(vectors.values), SPAN)
    spans["stop"] = np.arange(len(spans)) + 1
    return Ragged(spans, vectors.offsets)


def add_columns(batch):
    view = Batch(batch)
    seen = view.vectors("emb_layer_2")
    wide = seen.values.astype(np.float32)
    return view.emit(
        {
            "emb_layer_9": Ragged((wide * 2).astype(np.float16), seen.offsets),
            "spans": spans_for(seen),
            "flat": (wide * 2).astype(np.float16),
            "sum_score": wide.sum(axis=1),
            "why": np.asarray([f"row {text}" for text in view.cells("text")], dtype=object),
            "names": np.asarray([[text, text] for text in view.cells("text")]),
        }
    )


SPAN_FEATURE = {"turn": Value("int32"), "rejected": Value("bool"), "start": Value("int32"), "stop": Value("int32")}
EXPECTED = Features(
    {
        "text": Value("string"),
        "emb_layer_2": List(Value("float16"), length=4),
        "emb_layer_9": List(List(Value("float16"), length=4)),
        "spans": List(SPAN_FEATURE),
        "flat": List(Value("float16"), length=4),
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
    assert done[1]["emb_layer_9"] == [(VECTORS[1] * 2).tolist()] and done[1]["flat"] == (VECTORS[1] * 2).tolist()
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
    assert plain["flat"].dtype == plain["emb_layer_9"][0].dtype == np.float16
    assert plain["spans"][1] == [{"turn": 0, "rejected": False, "start": 0, "stop": 2}]
    row = add_columns({"text": "b", "emb_layer_2": VECTORS[1].tolist()})
    assert row["sum_score"] == expected[1]
    assert row["why"] == "row b"
    assert row["emb_layer_9"].tolist() == [(VECTORS[1] * 2).tolist()]


# Vectors


def same(found, expected):
    assert found.counts.tolist() == expected.counts.tolist()
    np.testing.assert_array_equal(found.values, expected.values)


def listed(vectors: Ragged) -> list:
    return [vectors.row(at).tolist() for at in range(len(vectors))]


@pytest.mark.parametrize("kind", [pa.list_(pa.float16(), 4), pa.list_(pa.float16()), pa.large_list(pa.float16())])
def test_a_column_of_single_vectors_is_one_vector_a_row(kind):
    same(arrow_vectors(pa.array(VECTORS.tolist(), kind)), Ragged.one_each(VECTORS))


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float16(), 4)),
        pa.list_(pa.list_(pa.float16())),
        pa.large_list(pa.large_list(pa.float16())),
        pa.large_list(pa.list_(pa.float16(), 4)),
    ],
)
def test_a_column_of_lists_of_vectors_is_several_a_row(kind):
    column = pa.array(listed(MANY), kind)
    same(arrow_vectors(column), MANY)
    same(arrow_vectors(pa.chunked_array([column.slice(0, 1), column.slice(1)])), MANY)
    same(arrow_vectors(column.slice(1)), MANY.take(np.array([1, 2])))


def test_every_host_has_the_same_vectors():
    cells = listed(MANY)
    table = pa.table({"row_id": ["a", "b", "c"], "emb_layer_2": pa.array(cells, pa.list_(pa.list_(pa.float16(), 4)))})
    found = Dataset(table)
    for kind in (None, "arrow", "numpy", "torch", "pandas"):
        same(Batch((found.with_format(kind) if kind else found)[:]).vectors("emb_layer_2"), MANY)
        same(Batch((found.with_format(kind) if kind else found)[2:]).vectors("emb_layer_2"), MANY.take(np.array([2])))
    same(Batch({"emb_layer_2": cells}).vectors("emb_layer_2"), MANY)
    same(Batch({"emb_layer_2": [np.array(cell, np.float16) for cell in cells]}).vectors("emb_layer_2"), MANY)
    same(Batch(found[2]).vectors("emb_layer_2"), MANY.take(np.array([2])))
    same(Batch({"emb_layer_2": VECTORS}).vectors("emb_layer_2"), Ragged.one_each(VECTORS))
    same(Batch({"emb_layer_2": VECTORS[0]}).vectors("emb_layer_2"), Ragged.one_each(VECTORS[:1]))


def address(array):
    return array.__array_interface__["data"][0]


def test_vectors_come_out_of_arrow_without_a_copy(rows):
    chunk = rows.data.column("emb_layer_2").chunks[0]
    seen = arrow_vectors(pa.chunked_array([chunk])).values
    assert address(seen) == chunk.flatten().buffers()[1].address
    assert seen.dtype == np.float16
    several = pa.array(listed(MANY), pa.list_(pa.list_(pa.float16(), 4)))
    assert address(arrow_vectors(several).values) == several.values.values.buffers()[1].address


def test_offsets_of_a_slice_are_honoured(rows):
    same(arrow_vectors(rows.data.column("emb_layer_2").slice(1, 2)), Ragged.one_each(VECTORS[1:]))
    same(arrow_vectors(pa.array(VECTORS.tolist(), pa.list_(pa.float32())).slice(1)), Ragged.one_each(VECTORS[1:]))


def test_a_null_row_has_no_vector_and_keeps_its_place():
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float32())):
        seen = arrow_vectors(pa.array([[1, 2], None, [3, 4]], kind))
        assert seen.counts.tolist() == [1, 0, 1] and seen.values.tolist() == [[1, 2], [3, 4]]
    seen = Batch({"x": [[1.0, 2.0], None]}).vectors("x")
    assert seen.counts.tolist() == [1, 0] and seen.values.tolist() == [[1, 2]]
    for nothing in ([None, None], [[], None]):
        seen = Batch({"x": nothing}).vectors("x")
        assert seen.counts.tolist() == [0, 0] and len(seen.values) == 0
        for kind in (pa.list_(pa.null()), pa.list_(pa.float32()), pa.list_(pa.list_(pa.float32()))):
            seen = arrow_vectors(pa.array(nothing, kind))
            assert seen.counts.tolist() == [0, 0] and len(seen.values) == 0


def test_a_null_vector_among_others_is_nan():
    cells = [[[1.0, 2.0], None], [[3.0, 4.0]], None, [None]]
    for kind in (pa.list_(pa.list_(pa.float32())), pa.list_(pa.list_(pa.float32(), 2))):
        seen = arrow_vectors(pa.array(cells, kind))
        assert seen.counts.tolist() == [2, 1, 0, 1]
        np.testing.assert_array_equal(seen.values, [[1, 2], [np.nan] * 2, [3, 4], [np.nan] * 2])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"e": [[1.0, 2.0], [1.0]]}, "vectors of different lengths"),
        ({"e": [[[1.0, 2.0]], [[1.0]]]}, "vectors of different lengths"),
        ({"e": [[[1.0, 2.0], [1.0]]]}, "no vectors of one length"),
        ({"e": [[[[1.0]]]]}, "no vectors of one length"),
        ({"e": ["one", "two"]}, "no vectors"),
        ({"e": [[True, False]]}, "no vectors"),
        (pa.table({"e": ["one"]}), "not vectors"),
        (pa.table({"e": [[[[1.0]]]]}), "not vectors"),
        (pa.table({"e": pa.array([[1.0], [1.0, 2.0]])}), "different lengths"),
        (pa.table({"e": pa.array([[[1.0]], [[1.0, 2.0]]])}), "different lengths"),
        (pa.table({"e": pa.chunked_array([[[[1.0]]], [[[1.0, 2.0]]]])}), "different lengths"),
        (pa.table({"e": [["a"]]}), "not vectors"),
        (pa.table({"e": [[["a"]]]}), "not vectors"),
        (pa.table({"e": [[True]]}), "not vectors"),
    ],
)
def test_what_is_no_vector_column_is_said(data, what):
    with pytest.raises(DataError, match=what):
        Batch(data).vectors("e")


# Numbers, names, rows and batches


def test_numbers_turn_nulls_into_nan():
    table = pa.table({"s": pa.array([1.5, None], pa.float32())})
    for batch in (Batch(table), Batch({"s": [1.5, None]})):
        assert batch.numbers("s")[0] == 1.5
        assert np.isnan(batch.numbers("s")[1])


def test_what_is_no_number_column_is_said():
    for batch in (Batch(pa.table({"s": ["a"]})), Batch({"s": ["a", "b"]}), Batch({"s": [[1.0], [2.0, 3.0]]})):
        with pytest.raises(DataError, match="name a score column"):
            batch.numbers("s")


def test_a_missing_column_names_the_ones_that_are_there():
    with pytest.raises(MissingError, match="found: e"):
        Batch({"e": [1]}).require("emb_layer_3", "embed the rows")


TURN = {"role": "user", "content": "hi"}
STRUCT = {"role": ["user"], "content": ["hi"]}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a"},
        {"messages": [TURN]},
        {"messages": [TURN, TURN], "tools": [{"name": "x"}]},
        {"messages": STRUCT},
        {"messages": [TURN], "chosen": TURN, "rejected": TURN},
        {"prompt": [TURN], "chosen": [TURN], "rejected": [TURN]},
        {"data": ["a", "b"], "id": "1"},
        {"emb_layer_1": [0.5, 0.5]},
        {"emb_layer_1": [[0.5, 0.5]], "row_id": "a"},
        {"spans": [dict.fromkeys(SPAN.names, 0)]},
        {"label": 1},
    ],
)
def test_a_row_is_told_from_a_batch_of_such_rows_even_without_text(row):
    assert (Batch(row).is_row, Batch(row).n) == (True, 1)
    batch = Batch({name: [cell] * 3 for name, cell in row.items()})
    assert (batch.is_row, batch.n) == (False, 3)


def test_an_empty_batch_has_no_rows_and_a_list_is_no_batch():
    assert Batch({"text": []}).n == 0 and Batch({}).n == 0
    with pytest.raises(DataError, match="handed a list"):
        Batch(["a"])


def test_a_column_of_another_length_is_refused():
    with pytest.raises(DataError, match="has 2 values for 1 rows"):
        Batch({"text": ["a"]}).emit({"score": np.zeros(2)})
    with pytest.raises(DataError, match="has 3 values for 1 rows"):
        Batch({"text": ["a"]}).emit({"emb_layer_1": MANY})


# Formats: all of these read the same rows as the plain one


ROWS = [(f"Name flower {n}.", "A crocus, " + "early and fresh " * (n % 7) * 3 + "in spring.") for n in range(7)]
SHAPES = {
    "prompt and response": [{"prompt": asked, "response": said} for asked, said in ROWS],
    "messages": [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in ROWS
    ],
    "prompt and completion lists": [
        {"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": said}]}
        for asked, said in ROWS
    ],
    "content parts": [
        {
            "messages": [
                {"role": role, "content": [{"type": "text", "text": text}]}
                for role, text in (("user", asked), ("assistant", said))
            ]
        }
        for asked, said in ROWS
    ],
}
FORMATS = [None, "numpy", "torch", "pandas", "arrow", "polars", "jax"]


@pytest.fixture(scope="module")
def step():
    return EmbedLayers("toy", layers=[4])


@pytest.fixture(scope="module")
def plain(step):
    """What the plain format gives."""
    return step({name: [row[name] for row in SHAPES["messages"]] for name in ("messages",)})


@pytest.fixture(scope="module")
def scored(step):
    """Embedded rows, the score, and its values on the plain format."""
    score = LarfScore(ReferenceIndex.build(unsafe_rows(), safe_rows(), step, license="mit", source="tests"), layer=4)
    embedded = Dataset.from_list(SHAPES["messages"]).map(step, batched=True)
    return embedded, score, embedded.map(score, batched=True)


def formatted(table, kind):
    if kind in ("polars", "jax"):
        pytest.importorskip(kind)
    return table if kind is None else table.with_format(kind)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_format_and_shape_gives_the_ids_and_vectors_of_the_plain_one(step, plain, shape, kind, batched):
    table = Dataset.from_list(SHAPES[shape])
    found = formatted(table, kind).map(step, batched=batched).with_format("arrow")[:]
    assert found["row_id"].to_pylist() == plain["row_id"].tolist()
    assert found["unscorable"].to_pylist() == [""] * len(ROWS)
    assert found["spans"].to_pylist() == plain["spans"]
    vectors = Batch(found).vectors("emb_layer_4")
    assert vectors.counts.tolist() == [len(row) for row in plain["emb_layer_4"]]
    assert vectors.values.dtype == np.float16
    np.testing.assert_allclose(vectors.values, np.concatenate(plain["emb_layer_4"]), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_scored_and_filtered_as_the_plain_one(scored, kind, batched):
    embedded, score, expected = scored
    found = formatted(embedded, kind).map(score, batched=batched)
    values = found.with_format("numpy")["larf_score"][:]
    np.testing.assert_allclose(values, expected["larf_score"][:], rtol=1e-5, atol=1e-6)
    if kind in ("arrow", "polars") and not batched:
        return  # `Dataset.filter` itself cannot hand out rows of these one by one
    threshold = float(np.median(expected["larf_score"][:])) + 1e-4
    kept = formatted(found.with_format(None), kind).filter(IsSafe("larf_score", threshold), batched=batched)
    ids = zip(expected["row_id"][:], expected["larf_score"][:], strict=True)
    assert kept.with_format(None)["row_id"][:] == [row_id for row_id, value in ids if value < threshold]


def test_a_view_of_some_rows_is_scored_as_they_are(scored):
    embedded, score, expected = scored
    order = [5, 0, 3, 3]
    found = embedded.select(order).map(score, batched=True)
    assert found["larf_score"][:] == [expected["larf_score"][at] for at in order]


@pytest.mark.parametrize("kind", ["parquet", "saved", "in memory"])
def test_text_that_is_not_utf8_is_refused(tmp_path, kind):
    """Lengths that cannot be right are refused alike: pyarrow makes no such array, but `tests/fuzz` flips the bytes."""
    offsets, letters = pa.array([b"good", b"b\x80d"], pa.binary()).buffers()[1:]
    table = pa.table({"prompt": pa.StringArray.from_buffers(2, offsets, letters), "response": ["Hi."] * 2})
    if kind == "in memory":
        with pytest.raises(DataError, match="column 'prompt' is damaged"):
            Batch(table).cells("prompt")
        return
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        Dataset(InMemoryTable(table)).save_to_disk(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="damaged|cannot be read"):
        load_rows(tmp_path / "a.parquet")


def test_two_fields_of_one_name_are_a_sentence():
    """Arrow takes them, and a dictionary would lose one."""
    column = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    with pytest.raises(DataError, match="two fields of one name"):
        Batch(pa.table({"prompt": column})).cells("prompt")
