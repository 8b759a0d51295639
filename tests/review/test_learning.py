"""What people decide on the page teaches the score: rows are asked for, scored again, and stay as they were."""

import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter import EmbedLayers, ReferenceIndex
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.labeling import LabelRounds
from hf_safefilter.labeling.decided_labels import DecidedLabels
from hf_safefilter.references.joined_rows import with_rows
from hf_safefilter.review.review import Review
from hf_safefilter.saved.saved_rows import load_rows_with_steps, save_rows
from hf_safefilter.scores import make_score
from hf_safefilter.scores.probe import Probe, ProbeScore, fit_probe
from hf_safefilter.toy.corpus import mixed_rows, reference_rows
from review.scored_folder import COPY, ORIGINAL, UNREAD

FITTED = ("row_id", "emb_layer_3", "emb_layer_5")


def probe_of(saved):
    (step,) = [step for step in saved.steps if isinstance(step, ProbeScore)]
    return Probe.of(step.probe)


def decide_on(review, places, **more):
    """Drop every second row."""
    for number, place in enumerate(places):
        review.decide(place, {"decision": "drop" if number % 2 else "keep", "who": "ada"} | more)


def test_the_ten_rows_are_those_that_the_terminal_would_ask_for(review, scored):
    _, ds, steps = scored
    probe = probe_of(review.saved)
    rounds = LabelRounds(ds, ReferenceIndex.of(probe.facts["references"]), (3, 5), review.log.path)
    asked = review.next_rows()["rows"]
    assert asked == rounds.next_rows(10) and len(set(asked)) == 10 and UNREAD not in asked
    decide_on(review, asked)
    assert not set(review.next_rows()["rows"]) & set(asked)


def test_all_rows_are_scored_again_by_a_probe_of_the_decisions_and_as_many_are_above(review, scored, tmp_path):
    before = review.rows.scores.copy()
    above = int((before >= review.is_safe.threshold).sum())
    asked = review.next_rows()["rows"]
    decide_on(review, asked)
    said = review.score_again(review.is_safe.threshold)
    assert "10 labels, 5 unsafe" in said["sentence"] and said["output"].endswith("labelled/scored")
    assert review.rows.column == "largest_rank_score"
    after = review.rows.scores
    assert (after[np.isfinite(before)] != before[np.isfinite(before)]).any() and np.isnan(after[UNREAD])
    assert (after >= review.is_safe.threshold).sum() in (above, above + 1)  # of two alike none is kept
    on_disk = load_rows_with_steps(tmp_path / "labelled" / "scored")
    facts = probe_of(on_disk).facts
    assert facts["labels"] == DecidedLabels.of(review.log).summary() and facts["layers"] == [3, 5]
    # by a second route: fitted from the rows as they are stored, with a column of labels
    labels = {review.rows.ids[place]: ["safe", "unsafe"][number % 2] for number, place in enumerate(asked)}
    rows = {name: [cell for part in scored[1].values() for cell in part[name][:]] for name in FITTED}
    first = [rows["row_id"].index(name) for name in labels]  # a copy of a row is no other label
    labelled = Dataset.from_dict(
        {name: [cells[place] for place in first] for name, cells in rows.items()} | {"label": list(labels.values())}
    )
    probe = fit_probe(ReferenceIndex.of(facts["references"]), (3, 5), labeled=labelled, weight=facts["weight"])
    np.testing.assert_allclose(probe.directions, probe_of(on_disk).directions, rtol=1e-4, atol=1e-6)
    unchanged = load_rows_with_steps(scored[0])
    assert probe_of(unchanged).digest != probe_of(on_disk).digest
    assert unchanged.rows["train"]["probe_score"][:] != on_disk.rows["train"]["probe_score"][:]


def test_the_command_and_the_page_go_on_with_the_new_scores(review, call, tmp_path):
    decide_on(review, review.next_rows()["rows"])
    review.score_again(review.is_safe.threshold)
    body = review.overview()
    assert str(tmp_path / "labelled" / "scored") in body["command"] and body["column"] == "largest_rank_score"
    assert review.verdict()["sentence"] and review.map()["rows"] and review.row(ORIGINAL, text=False)["scores"]
    out = tmp_path / "decided"
    words = f"select {tmp_path / 'labelled' / 'scored'} --by largest_rank_score --threshold {body['threshold']!r}"
    code, _, err = call(*words.split(), "--decisions", review.log.path, "-o", out)
    assert code == 0, err
    # a later round replaces the folder that the page is reading
    decide_on(review, review.next_rows()["rows"][:4])
    assert "14 labels" in review.score_again(review.is_safe.threshold)["sentence"]
    again = Review.of(tmp_path / "labelled" / "scored", review.log.path, by="probe_score")
    assert len(again.overview()["decisions"]) == 14


def test_rows_join_the_references_and_leave_them_again(review, scored, tmp_path):
    base = ReferenceIndex.of(probe_of(review.saved).facts["references"])
    review.decide(20, {"decision": "drop", "who": "ada", "reference": True})
    review.decide(21, {"decision": "keep", "who": "ada", "reference": True})
    said = review.score_again(review.is_safe.threshold)
    assert said["sentence"].startswith("2 rows have joined the references; no label is left")
    index = ReferenceIndex.load(tmp_path / "labelled" / "references")
    assert index.counts == {side: count + 1 for side, count in base.counts.items()} and index.benign == base.benign + 1
    assert index.rows("unsafe")[-1].row_id == review.rows.ids[20]
    for step in review.saved.steps:
        if getattr(step, "METHOD", "") in ("probe", "shift"):
            assert step.references == index.digest
    train = scored[1]["train"]
    fresh = with_rows(base, train.select([20]), train.select([21]), mapping=None, data_set=(review.saved.name, "none"))
    shift = make_score("shift", {}, references=fresh, layer=5)
    wanted = train.remove_columns(list(shift.produces())).map(shift, batched=True)["shift_score"][:]
    np.testing.assert_allclose(review.saved.rows["train"]["shift_score"][:], wanted, rtol=1e-6)
    # the mark is taken back: what is left are the references that there were at the start
    review.decide(20, {"decision": "drop", "who": "ada", "reference": False})
    review.decide(21, {"decision": "keep", "who": "ada", "reference": False})
    review.score_again(review.is_safe.threshold)
    assert ReferenceIndex.of(probe_of(review.saved).facts["references"]) == base
    assert ReferenceIndex.load(tmp_path / "labelled" / "references") == base  # nor are they left for the next set


def test_a_marked_row_is_no_label_and_one_in_doubt_does_not_join(review):
    decide_on(review, (10, 11, 12, 13))
    review.decide(14, {"decision": "drop", "who": "ada", "reference": True})
    review.decide(15, {"decision": "drop", "who": "ada", "reference": True})
    review.decide(15, {"decision": "unsure", "who": "ada", "reference": True})
    review.decide(16, {"decision": "drop", "who": "ada", "reference": True})
    review.decide(16, {"decision": "keep", "who": "bob"})  # where people differ it joins nothing, and is unsafe
    said = review.score_again(None)["sentence"]
    assert said.startswith("1 row has joined the references; 5 labels, 3 unsafe")
    index = ReferenceIndex.of(probe_of(review.saved).facts["references"])
    assert index.rows("unsafe")[-1].row_id == review.rows.ids[14]
    assert 14 not in review.next_rows()["rows"]
    lines = [json.loads(line) for line in review.log.path.read_text().splitlines()]
    assert [line["reference"] for line in lines] == [False] * 4 + [True, True, False, True, False]


def test_what_cannot_be_learnt_changes_nothing(review, tmp_path):
    shown = review.saved
    with pytest.raises(DataError, match="not of both kinds"):
        review.score_again(0.5)
    review.decide(3, {"decision": "keep", "who": "ada"})
    with pytest.raises(DataError, match="0 dropped or masked, 1 kept"):
        review.score_again(0.5)
    review.decide(0, {"decision": "drop", "who": "ada", "reference": True})  # a row of two answers
    with pytest.raises(DataError, match="2 answers"):
        review.score_again(0.5)
    review.decide(0, {"decision": "drop", "who": "ada"})
    (tmp_path / "labelled" / "scored").mkdir(parents=True)
    (tmp_path / "labelled" / "scored" / "letter.txt").write_text("mine")
    with pytest.raises(OptionError, match="holds other files"):
        review.score_again(0.5)
    assert review.saved is shown and (tmp_path / "labelled" / "scored" / "letter.txt").read_text() == "mine"


def test_a_score_that_compares_with_nothing_cannot_ask(tmp_path):
    step = make_score("length", {})
    rows = Dataset.from_list([{"prompt": "a", "response": "b" * size} for size in range(1, 9)]).map(step, batched=True)
    save_rows(rows, tmp_path / "scored", [step], name="rows", revision="none")
    review = Review.of(tmp_path / "scored", tmp_path / "decisions.jsonl", by="length_score")
    for ask in (review.next_rows, lambda: review.score_again(1.0)):
        with pytest.raises(OptionError, match="no score of these rows has references"):
            ask()


def test_a_page_by_a_score_that_learns_nothing_goes_on_by_the_one_that_does(tmp_path):
    embed = EmbedLayers("toy", (3, 5), position="mean,last_prompt")
    index = ReferenceIndex.build(*reference_rows(12, 3), embed, license="mit", source="a test")
    rows = embed_rows(Dataset.from_list(mixed_rows(24, 0.3, 3)), embed)
    steps = [make_score("length", {}), make_score("ensemble", {}, references=index, layers=(3, 5))]
    for step in steps:
        rows = score_rows(rows, step)
    save_rows(rows, tmp_path / "scored", [embed, *steps], name="rows", revision="none")
    review = Review.of(tmp_path / "scored", tmp_path / "decisions.jsonl", by="length_score", output=tmp_path / "out")
    decide_on(review, (0, 1, 2, 3))
    review.score_again(None)
    assert review.rows.column == "ensemble_score"


def test_a_decision_on_a_copy_is_one_label(review):
    decide_on(review, (COPY, ORIGINAL, 20, 21))
    assert len(DecidedLabels.of(review.log).current) == 3


def test_labels_that_are_all_taken_back_are_forgotten(review):
    before = review.rows.scores.copy()
    decide_on(review, (10, 11, 12, 13))
    review.score_again(0.5)
    assert (review.rows.scores[np.isfinite(before)] != before[np.isfinite(before)]).any()
    for place in (10, 11, 12, 13):
        review.decide(place, {"decision": "withdrawn", "who": "ada"})
    assert "by the references alone" in review.score_again(0.5)["sentence"]
    np.testing.assert_allclose(review.rows.scores, before, rtol=1e-6)


@pytest.mark.parametrize("above", [0, 59])
def test_none_or_all_above_the_threshold_stay_so(review, above):
    decide_on(review, (10, 11, 12, 13))
    review.score_again(-1.0 if above else 2.0)
    scores = review.rows.scores[np.isfinite(review.rows.scores)]
    assert (scores >= review.is_safe.threshold).sum() in ((0,) if above == 0 else (58, 59))


def test_scores_with_other_references_stay(review, tmp_path):
    """The shift compares with other references than the probe: it learns nothing from labels."""
    others = ReferenceIndex.build(*reference_rows(12, 9), review.saved.steps[0], license="mit", source="another test")
    shift = make_score("shift", {}, references=others, layer=5)
    rows = review.saved.rows.remove_columns([*shift.produces(), "largest_rank_score", "largest_rank_by"])
    rows = score_rows(rows, shift)
    steps = [*review.saved.steps[:2], shift]
    save_rows(rows, tmp_path / "scored", steps, name="rows", revision="none")
    other = Review.of(tmp_path / "scored", review.log.path, by="probe_score", output=tmp_path / "again")
    decide_on(other, (10, 11, 12, 13))
    other.score_again(0.5)
    assert shift in other.saved.steps
    np.testing.assert_array_equal(other.saved.rows["train"]["shift_score"][:], rows["train"]["shift_score"][:])


def test_what_is_scored_again_does_not_go_into_a_signed_folder(review, call, tmp_path):
    words = f"select {review._folder} --by probe_score --drop-count 5 -o {tmp_path / 'decided'}"
    assert call(*words.split())[0] == 0
    for folder in (tmp_path / "decided", tmp_path / "decided" / "kept"):
        with pytest.raises(OptionError, match="signed"):
            Review.of(tmp_path / "decided", tmp_path / "log.jsonl", output=folder)


@pytest.mark.parametrize("at", ["saved.saved_rows.record_files", "review.learning.save_again"])
def test_a_kill_while_rows_are_scored_again_loses_nothing(scored, tmp_path, at):
    """Killed when the new folder is all but written, and when the references are and the rows are not."""
    code = (
        "import os, sys; from pathlib import Path; from importlib import import_module\n"
        "from hf_safefilter.review.review import Review\n"
        "review = Review.of(Path(sys.argv[1]), Path(sys.argv[2]), by='probe_score', output=Path(sys.argv[3]))\n"
        "for place in range(20, 26):\n"
        "    word = 'drop' if place % 2 else 'keep'\n"
        "    review.decide(place, {'decision': word, 'who': 'ada', 'reference': place == 20})\n"
        "module, _, name = sys.argv[4].rpartition('.')\n"
        "module = import_module('hf_safefilter.' + module)\n"
        "setattr(module, name, lambda *_, **__: os.kill(os.getpid(), 9))\n"
        "review.score_again(0.5)"
    )
    log, output = tmp_path / "decisions.jsonl", tmp_path / "labelled"
    words = [sys.executable, "-c", code, str(scored[0]), str(log), str(output), at]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert not (output / "scored").exists()
    again = Review.of(scored[0], log, by="probe_score", output=output)
    assert len(again.overview()["decisions"]) == 6
    assert "1 row has joined" in again.score_again(0.5)["sentence"]
    assert {path.name for path in output.iterdir()} == {"references", "scored"}  # and no scratch
