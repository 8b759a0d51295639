"""Scores of rows that were read in several spans: the largest span's, of the row's own side, against plain loops."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from stand_in import WIDTH

from hf_safefilter.data.ragged import Ragged, ragged_to_arrow
from hf_safefilter.data.spans import SPAN, spans_to_arrow
from hf_safefilter.errors import DataError
from hf_safefilter.scores.anchors import AnchorScore
from hf_safefilter.scores.direction import DirectionScore, projection
from hf_safefilter.scores.larf import LarfScore, larf
from hf_safefilter.scores.nearest import NearestScore
from hf_safefilter.scores.saft import SaftScore, fit_saft

ROWS = 40
REFERENCE_SCORES = {
    "larf": (LarfScore, {}),
    "larf_top": (LarfScore, {"top": 3}),
    "anchor": (AnchorScore, {}),
    "nearest": (NearestScore, {}),
    "direction": (DirectionScore, {}),
    "lda": (DirectionScore, {"form": "lda"}),
}
NAMES = [*REFERENCE_SCORES, "saft", "saft_turned"]


def table_of(rows, rejected=None, named=None):
    """A table as `EmbedLayers` makes it: any number of vectors a row, some of them of a rejected side."""
    vectors = Ragged.of(rows, np.empty((0, WIDTH), np.float16))
    spans = np.zeros(len(vectors.values), SPAN)
    spans["start"] = np.arange(len(spans)) * 9
    spans["stop"] = spans["start"] + 9
    if rejected is not None:
        spans["rejected"] = np.concatenate(rejected)
    columns = {
        "spans": spans_to_arrow(Ragged(spans, vectors.offsets)),
        "emb_layer_2": ragged_to_arrow(vectors),
    }
    return pa.table(columns | (named or {}))


def singles(vectors):
    """Each vector as a row of its own, in a column of plain vectors."""
    return {"emb_layer_2": vectors}


@pytest.fixture(scope="module")
def ragged():
    """Float16 vectors of rows with none to six spans, and which of them are of the rejected side."""
    draw = np.random.default_rng(4)
    counts = draw.integers(0, 7, size=ROWS)
    rows = [(draw.normal(size=(count, WIDTH)) * 9).astype(np.float16) for count in counts]
    rejected = [draw.random(count) < 0.4 for count in counts]
    return rows, rejected


@pytest.fixture(scope="module")
def make(index, ragged):
    """Makes the score of a name, with further options."""
    rows, _ = ragged
    vectors = np.concatenate(rows)
    ds = Dataset.from_dict({"emb_layer_2": vectors.astype(np.float32).tolist()})
    strength = np.linalg.norm(vectors.astype(np.float64), axis=1)
    upright = fit_saft(ds, 2, k=2)
    labelled = ds.add_column("label", np.where(strength > np.median(strength), "safe", "unsafe").tolist())
    turned = fit_saft(labelled, 2, k=2, label="label")
    assert (upright.sign, turned.sign) == (1, -1)

    def made(name, **more):
        if name.startswith("saft"):
            return SaftScore(turned if name == "saft_turned" else upright, **more)
        kind, options = REFERENCE_SCORES[name]
        return kind(index, 2, **options, **more)

    return made


@pytest.fixture
def step(make, name):
    return make(name)


def of(table, step):
    """The columns that a step adds, as arrays, without the method's name in theirs."""
    added = step(table)
    return {name.removeprefix(f"{step.METHOD}_"): added[name].to_numpy() for name in step.produces()}


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * max(1, np.nanmax(np.abs(expected), initial=0)))


def largest(scores, rows):
    """The largest of the scores of each row's vectors and its place, by a loop; NaN and -1 for a row without any."""
    tops, places, at = [], [], 0
    for row in rows:
        own = scores[at : at + len(row)].tolist()
        at += len(row)
        tops.append(max(own) if own else np.nan)
        places.append(own.index(max(own)) if own else -1)
    return np.array(tops), np.array(places)


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_span_counts_and_is_named(step, ragged):
    rows, _ = ragged
    alone = step(singles(np.concatenate(rows)))[f"{step.METHOD}_score"]
    found = of(table_of(rows), step)
    top, place = largest(alone, rows)
    same(found["score"], top)
    assert found["span"].tolist() == place.tolist()
    assert 0 in [len(row) for row in rows] and max(place) > 2


def test_the_scores_of_spans_are_the_definitions_in_standardised_coordinates(index, ragged, make):
    rows, _ = ragged
    sides = [side.astype(np.float64) for side in index.vectors(2)]
    both = np.concatenate(sides)
    unsafe, safe, placed = (
        (vectors - both.mean(axis=0)) / both.std(axis=0)
        for vectors in (*sides, np.concatenate(rows).astype(np.float64))
    )

    def cosines(side):
        norms = np.linalg.norm(placed, axis=1)[:, None] * np.linalg.norm(side, axis=1)
        return np.sort(placed @ side.T / norms, axis=1)

    near, far = cosines(unsafe), cosines(safe)
    toward = unsafe.mean(axis=0) - safe.mean(axis=0)
    expected = {
        "larf": near.mean(axis=1) - far.mean(axis=1),
        "larf_top": larf(placed, unsafe, safe, top=3),
        "anchor": near[:, -1],
        "nearest": near[:, -5:].mean(axis=1) - far[:, -5:].mean(axis=1),
        "direction": placed @ toward / np.linalg.norm(toward),
        "lda": projection(placed, unsafe, safe, "lda"),
    }
    for name, by_hand in expected.items():
        found, (top, _) = of(table_of(rows), make(name)), largest(by_hand, rows)
        close = 1e-5 * max(1, np.abs(by_hand).max())
        np.testing.assert_allclose(found["score"], top, rtol=1e-4, atol=close, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_spans_have_no_score_and_no_span(step):
    none = np.empty((0, WIDTH), np.float16)
    found = of(table_of([none, np.ones((2, WIDTH), np.float16), none]), step)
    assert np.isnan(found["score"]).tolist() == [True, False, True]
    assert found["span"].tolist() == [-1, 0, -1]  # of two equal spans the first
    assert of(table_of([none, none]), step)["span"].tolist() == [-1, -1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, np.nan, np.inf])
def test_a_span_that_cannot_be_scored_leaves_the_row_without_a_score(step, ragged, bad):
    rows = [row.copy() for row in ragged[0] if len(row) > 1][:4]
    whole = of(table_of(rows), step)
    rows[1][-1] = bad
    found = of(table_of(rows), step)
    assert np.isnan(found["score"]).tolist() == [False, True, False, False] and found["span"][1] == -1
    same(found["score"][[0, 2, 3]], whole["score"][[0, 2, 3]])


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_plain_vectors_is_scored_as_one_span_a_row(step, ragged):
    vectors = np.concatenate(ragged[0])[:9]
    expected = of(table_of([vector[None] for vector in vectors]), step)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
    for plain in (flat, flat.cast(pa.list_(pa.float16()))):
        found = of(pa.table({"emb_layer_2": plain}), step)
        same(found["score"], expected["score"])
        assert found["span"].tolist() == [0] * 9
    missing = pa.table({"emb_layer_2": pa.array([vectors[0].tolist(), None], pa.list_(pa.float32()))})
    assert of(missing, step)["span"].tolist() == [0, -1]


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_of_a_pair_are_scored_as_rows_of_their_own(make, name, ragged):
    rows, rejected = ragged
    step, plain = make(name, pairs=True), make(name)
    found = of(table_of(rows, rejected), step)
    chosen = of(table_of([row[~no] for row, no in zip(rows, rejected, strict=True)]), plain)
    other = of(table_of([row[no] for row, no in zip(rows, rejected, strict=True)]), plain)
    same(found["score"], chosen["score"])
    same(found["rejected_score"], other["score"])
    np.testing.assert_array_equal(found["pair_shift"], found["score"] - found["rejected_score"])
    assert np.isfinite(found["pair_shift"]).any() and np.isnan(found["pair_shift"]).any()
    # its place is among all spans of the row
    places = [np.flatnonzero(~no)[at] if at >= 0 else -1 for no, at in zip(rejected, chosen["span"], strict=True)]
    assert found["span"].tolist() == places


@pytest.mark.parametrize("name", NAMES)
def test_the_rejected_side_never_changes_a_rows_own_score(make, name, ragged):
    rows, rejected = ragged
    own = of(table_of([row[~no] for row, no in zip(rows, rejected, strict=True)]), make(name))["score"]
    other = [np.where(no[:, None], -row if len(row) else row, row) for row, no in zip(rows, rejected, strict=True)]
    spoilt = [np.where(no[:, None], np.float16(np.nan), row) for row, no in zip(rows, rejected, strict=True)]
    for changed in (rows, other, spoilt):
        for pairs in (False, True):
            found = of(table_of(changed, rejected), make(name, pairs=pairs))
            same(found["score"], own)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_no_pairs_have_no_rejected_score(make, name, ragged):
    rows, _ = ragged
    found = of(table_of(rows), make(name, pairs=True))
    assert np.isnan(found["rejected_score"]).all() and np.isnan(found["pair_shift"]).all()
    same(found["score"], of(table_of(rows), make(name))["score"])


def test_the_columns_of_a_pair_are_asked_for(make):
    assert make("larf").produces() == ("larf_score", "larf_span", "larf_span_scores")
    columns = ("larf_score", "larf_span", "larf_span_scores", "larf_rejected_score", "larf_pair_shift")
    assert make("larf", pairs=True).produces() == columns
    assert make("larf", pairs=True) != make("larf")


def test_the_types_of_the_columns(make, ragged):
    added = make("larf", pairs=True)(table_of(*ragged))
    kinds = {name: added.schema.field(name).type for name in make("larf", pairs=True).produces()}
    assert kinds == {
        "larf_score": pa.float32(), "larf_span": pa.int32(), "larf_rejected_score": pa.float32(),
        "larf_pair_shift": pa.float32(), "larf_span_scores": pa.list_(pa.float32()),
    }  # fmt: skip


def test_each_span_has_its_score_and_the_row_its_largest(make, ragged):
    rows, rejected = ragged
    found = of(table_of(rows, rejected), make("larf"))
    for row, sides, scores, top, at in zip(
        rows, rejected, found["span_scores"], found["score"], found["span"], strict=True
    ):
        assert len(scores) == len(row)
        chosen = [score for score, other in zip(scores, sides, strict=True) if not other]
        if at >= 0:
            assert top == max(chosen) == scores[at]


def test_the_neighbours_are_those_of_the_span_that_counts(index, make, ragged):
    rows, rejected = ragged
    found = of(table_of(rows, rejected), make("nearest"))
    both = np.concatenate(index.vectors(2)).astype(np.float64)
    unsafe = (index.vectors(2)[0] - both.mean(axis=0)) / both.std(axis=0)
    ids = [row.row_id for row in index.rows("unsafe")]
    for row, place, named in zip(rows, found["span"], found["unsafe"], strict=True):
        if place < 0:
            assert named.tolist() == [""] * 5
            continue
        vector = (row[place].astype(np.float64) - both.mean(axis=0)) / both.std(axis=0)
        order = np.argsort(-(unsafe @ vector) / np.linalg.norm(unsafe, axis=1))[:5]
        assert named.tolist() == [ids[at] for at in order]


def test_spans_of_other_rows_are_refused(make, ragged):
    rows, _ = ragged
    table = table_of(rows)
    turned = table.set_column(0, "spans", table["spans"].take(pa.array(range(ROWS - 1, -1, -1))))
    with pytest.raises(DataError, match="do not belong together"):
        make("larf")(turned)
