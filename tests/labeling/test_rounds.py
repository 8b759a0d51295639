"""Rounds of labels on rows whose answers are told apart by what references do not know."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from stand_in import StandIn, safe_rows, unsafe_rows, vector_of
from svg_texts import texts_of

from hf_safefilter.decide.verdict.rank_statistics import Interval
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.labeling import LabelRounds
from hf_safefilter.labeling.curve import LEAST, CurvePoint, curve_point, draw_curve, folds_by_request
from hf_safefilter.labeling.read_rows import ReadRows
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.probe import ProbeScore, fit_probe

LAYERS = (2, 3)
AXIS = 12  # harm in these rows; the references' is in the first eight
WHEN = "2026-01-02T03:04:05+00:00"


@pytest.fixture(scope="module")
def references():
    return ReferenceIndex.build(unsafe_rows(20), safe_rows(15), StandIn(LAYERS), license="mit", source="the tests")


def rows_of(count=60, first=0):
    rows = {"row_id": [], "prompt": [], "response": [], "truth": [], **{f"emb_layer_{layer}": [] for layer in LAYERS}}
    for number in range(first, first + count):
        unsafe = number % 3 == 0
        rows["row_id"].append(f"id{number}")
        rows["prompt"].append(f"Question {number // 2}")
        rows["response"].append(f"Answer {number}")
        rows["truth"].append("unsafe" if unsafe else "safe")
        for layer in LAYERS:
            spans = np.stack([vector_of(f"window {number} {part}", layer) for part in range(1 + number % 2)])
            spans[:, AXIS] += 6 if unsafe else -6
            rows[f"emb_layer_{layer}"].append(spans.astype(np.float16).tolist())
    return Dataset.from_dict(rows)


def answered(session, count):
    """Give as many true answers."""
    for _ in range(count):
        (place,) = session.next_rows(1)
        session.label(place, session.row(place)["truth"], who="me", when=WHEN)


def test_labels_teach_what_the_references_do_not_know(references, tmp_path):
    session = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    truth = np.array([number % 3 == 0 for number in range(60)])
    from sklearn.metrics import roc_auc_score

    before = roc_auc_score(truth, session.scores())
    answered(session, 24)
    assert before < 0.8 < 0.95 < roc_auc_score(truth, session.scores())
    assert (session.round, session.left) == (3, 6)
    point = session.point()
    assert (point.labels, point.unsafe) == (24, sum(session.labeled.values()))
    assert point.auroc.value > 0.9 > point.references
    assert point.auroc.low <= point.auroc.value <= point.auroc.high


def test_the_scores_are_those_of_the_probe_that_is_kept(references, tmp_path):
    rows = rows_of()
    session = LabelRounds(rows, references, LAYERS, tmp_path / "labels.jsonl")
    alone = rows.map(ProbeScore(fit_probe(references, LAYERS)), batched=True)["probe_score"]
    np.testing.assert_allclose(session.scores(), alone, rtol=1e-5)
    answered(session, 12)
    probe = session.probe()
    np.testing.assert_allclose(
        session.scores(), rows.map(ProbeScore(probe), batched=True)["probe_score"], rtol=1e-4, atol=1e-5
    )
    assert probe.facts["labels"] == session.log.summary()
    assert probe.facts["labels"]["count"] == 12
    assert probe.facts["counts"]["labeled_unsafe"] == sum(session.labeled.values())


def test_a_new_session_goes_on_where_a_killed_one_stopped(references, tmp_path):
    session = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    answered(session, 13)
    again = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    assert again.labeled == session.labeled and (again.round, again.left) == (2, 7)
    assert again.next_rows() == session.next_rows() and len(again.next_rows()) == 7
    np.testing.assert_array_equal(again.scores(), session.scores())


def test_unsure_rows_are_asked_once_and_teach_nothing(references, tmp_path):
    session = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    before = session.scores()
    batch = session.next_rows()
    for place in batch:
        session.label(place, "unsure", who="me", when=WHEN)
    np.testing.assert_array_equal(session.scores(), before)
    assert not set(session.next_rows()) & set(batch) and session.labeled == {}
    with pytest.raises(DataError, match="not of both kinds"):
        session.probe()


def test_a_withdrawn_answer_is_asked_for_again(references, tmp_path):
    session = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    (place,) = session.next_rows(1)
    session.label(place, "unsafe", who="me", when=WHEN)
    assert session.next_rows(1) != [place]
    session.withdraw(place, who="me", when=WHEN)
    assert session.next_rows(1) == [place]


def test_splits_are_counted_through_and_copies_asked_for_once(references, tmp_path):
    parts = DatasetDict({"train": rows_of(20), "more": rows_of(30, first=10)})  # ten rows are in both
    session = LabelRounds(parts, references, LAYERS, tmp_path / "labels.jsonl")
    asked = session.next_rows(50)
    ids = [session.ids[place] for place in asked]
    assert len(ids) == len(set(ids)) == 40
    assert [session.row(place)["row_id"] for place in asked] == ids
    assert "emb_layer_2" not in session.row(0)
    whole = LabelRounds(rows_of(40), references, LAYERS, tmp_path / "others.jsonl")
    np.testing.assert_array_equal(session.scores()[20:], whole.scores()[10:])


def test_labels_made_elsewhere_are_taken_once(references, tmp_path):
    session = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    labels = dict(zip(rows_of()["row_id"], rows_of()["truth"], strict=True))
    assert session.take(labels | {"other": "safe"}, who="column 'truth'", when=WHEN) == 60
    size = session.log.path.stat().st_size
    session.take(labels, who="column 'truth'", when=WHEN)
    assert session.log.path.stat().st_size == size
    assert [point.labels for point in session.curve()] == [10, 20, 40, 60]
    assert session.round == 1  # nobody has been asked yet
    assert session.next_rows() == []
    with pytest.raises(DataError, match="no label of these rows"):
        session.take({"other": "safe"}, who="a file")
    with pytest.raises(DataError, match="no label of these rows"):
        LabelRounds(rows_of(5, first=100), references, LAYERS, session.log.path)


def test_the_curve_has_a_point_for_each_round(references, tmp_path):
    session = LabelRounds(rows_of(), references, LAYERS, tmp_path / "labels.jsonl")
    assert session.curve() == []
    answered(session, 23)
    points = session.curve()
    assert [point.labels for point in points] == [10, 20, 23]
    assert points[-1] == session.point()
    draw_curve(points, tmp_path / "curve")
    assert {path.name for path in tmp_path.iterdir()} == {"labels.jsonl", "curve.png", "curve.svg"}
    shown = texts_of(tmp_path / "curve.svg")
    assert {"chance", "rows labelled", "AUROC, 95 % interval", "references alone, on the same rows"} <= set(shown)
    assert points[-1].sentence() in " ".join(shown)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("points", [[], [CurvePoint(4, 1, None, None)], [CurvePoint(9, 5, Interval(0.3, 0.1, 1), 0.2)]])
def test_a_curve_of_few_points_is_drawn_on_whole_numbers_of_rows(points, tmp_path):
    draw_curve(points, tmp_path / "curve")
    shown = texts_of(tmp_path / "curve.svg")
    assert {"1.0", "8", "10"} <= set(shown)
    assert any("no AUROC yet" in text for text in shown) == (bool(points) and points[0].auroc is None)


def test_rows_without_ids_or_vectors_are_refused(references, tmp_path):
    with pytest.raises(MissingError, match="row_id"):
        LabelRounds(rows_of().remove_columns("row_id"), references, LAYERS, tmp_path / "labels.jsonl")
    session = LabelRounds(rows_of().remove_columns("emb_layer_3"), references, LAYERS, tmp_path / "labels.jsonl")
    with pytest.raises(MissingError, match="emb_layer_3"):
        session.scores()


def test_a_request_is_never_on_both_sides_of_a_fold():
    requests = [f"r{number // 3}" for number in range(60)]
    truth = np.array([number % 3 == 0 for number in range(60)], float)
    folds = folds_by_request(requests, truth)
    assert all(len(set(folds[start : start + 3])) == 1 for start in range(0, 60, 3))
    assert np.bincount(folds).tolist() == [12] * 5
    whole = np.array([number % 10 == 0 for number in range(60)], float)
    unsafe = np.bincount(folds_by_request([str(n) for n in range(60)], whole), whole)
    assert unsafe.min() >= 1  # six unsafe rows over five folds


def test_no_row_is_scored_by_a_probe_that_was_given_it():
    truth = np.arange(20) % 2.0
    seen = []

    def without(held_out):
        seen.append(held_out)
        return np.where(held_out, truth, 1 - truth)

    point = curve_point(truth, [str(n) for n in range(20)], without, 1 - truth)
    assert (point.auroc.value, point.references) == (1.0, 0.0)
    assert np.sum(seen, axis=0).tolist() == [1] * 20
    few = curve_point(truth[: 2 * LEAST - 1], [str(n) for n in range(9)], without, truth[:9])
    assert few.auroc is None and "at least" in few.sentence()


def test_means_are_those_of_each_rows_spans():
    from hf_safefilter.data.ragged import Ragged

    draw = np.random.default_rng(0)
    values = [draw.normal(size=(4, 3)).astype(np.float16) for _ in LAYERS]
    rows = ReadRows(tuple(Ragged(part, np.array([0, 1, 1, 4])) for part in values), None)
    expected = [[part[0], np.zeros(3), part[1:].astype(float).mean(0)] for part in values]
    np.testing.assert_allclose(rows.means(), np.concatenate(expected, axis=1), rtol=1e-3)
