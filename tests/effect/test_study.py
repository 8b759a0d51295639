"""The study: equal work for every arm, nothing done twice, nothing lost, no figure where there is nothing to see."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from processes import wait_until

from hf_safefilter.decide.refusals_to_add import diverse_refusals
from hf_safefilter.effect import Questions, Study, Tuning, margin, measure_effect
from hf_safefilter.effect import runs as study_module
from hf_safefilter.effect.arms import USUAL
from hf_safefilter.effect.effect_report import metric
from hf_safefilter.effect.margin import begun_answers, refusal_margins
from hf_safefilter.errors import DataError, MissingError, ModelError, OptionError
from hf_safefilter.toy.corpus import heldout_rows


@pytest.fixture(scope="module")
def finished_study(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return study(folder), folder


@pytest.fixture
def tuned(monkeypatch):
    """Which arms are tuned, as (rows, steps' rows, seed), while the test runs."""
    seen = []
    real = study_module.tune

    def counted(model, tokenizer, rows, order, options, *, seed, frozen=None, title):
        seen.append((len(np.unique(order)), len(order), seed))
        return real(model, tokenizer, rows, order, options, seed=seed, frozen=frozen)

    monkeypatch.setattr(study_module, "tune", counted)
    return seen


def figures(report) -> dict:
    return {(run.arm, run.seed): (run.rows, run.steps, run.losses, run.measured) for run in report.runs}


def test_every_arm_gets_as_many_steps_and_seeds(finished_study):
    report, _ = finished_study
    assert report.arms == list(USUAL)
    assert {(run.arm, run.seed) for run in report.runs} == {(arm, seed) for arm in USUAL for seed in (0, 1)}
    assert {run.steps for run in report.runs} == {2}
    rows = {arm: {run.rows for run in report.of(arm)} for arm in USUAL}
    assert rows == {"all": {80}, "kept": {64}, "dropped": {16}, "random": {16}, "length_matched": {16}}
    length = {arm: report.of(arm)[0].mean_length for arm in USUAL}
    assert abs(length["length_matched"] - length["dropped"]) < abs(length["kept"] - length["dropped"]) / 2
    assert report.counts == {
        "rows": 80, "kept": 64, "dropped": 16, "unreadable": 0, "held_out": 0, "harmful": 12, "over_refusal": 12,
        "benign": 12, "harmful_left_out": 0, "over_refusal_left_out": 0, "benign_left_out": 0,
    }  # fmt: skip
    assert report.before.measured.harmful.refusal > 0.9


def test_a_masked_arm_learns_the_rest_of_the_rows(scored_spans, tmp_path, tuned):
    scored, is_safe, study = scored_spans
    report = measure_effect(scored, is_safe, study, tmp_path / "out")
    assert report.arms == ["kept", "masked"]
    rows = {run.arm: run.rows for run in report.runs}
    assert rows == {"kept": 10, "masked": 20}  # the ten rows of two answers, one of them harmful, are kept in part
    assert report.contrasts


def test_refusals_that_are_added_are_learned_and_not_asked(study, questions, tmp_path):
    refusals = diverse_refusals(3)
    prompt = refusals[0]["prompt"]
    assert len({row["category"] for row in refusals}) == 3
    report = study(
        tmp_path / "out",
        arms=("kept", "refusals"),
        seeds=(0,),
        questions=questions.replaced(harmful=([*questions.harmful, prompt], "as before, and one that is learned")),
    )
    (kept,), (more,) = report.of("kept"), report.of("refusals")
    assert more.rows - kept.rows == report.counts["refusals_added"] == 1  # of 64 kept rows
    assert report.counts["harmful_left_out"] == 1
    assert ("refusals", "kept") in {(contrast.first, contrast.second) for contrast in report.contrasts}


def test_a_masked_arm_needs_scores_of_spans(study, tmp_path):
    with pytest.raises(MissingError, match="scores of spans"):
        study(tmp_path / "out", arms=("kept", "masked"))


def test_what_is_on_disk_is_the_report(finished_study):
    report, folder = finished_study
    assert {path.name for path in folder.iterdir()} == {
        "runs",
        "inputs.json",
        "effect.json",
        "effect.png",
        "effect.svg",
    }
    body = json.loads((folder / "effect.json").read_text())
    for arm in USUAL:
        by_hand = np.mean([run["measured"]["harmful"]["refused"] / 12 for run in body["runs"] if run["arm"] == arm])
        assert body["arms"][arm]["refusal"]["mean"] == pytest.approx(by_hand)
    assert body["card"]["threshold_hex"] == (0.5).hex()
    text = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert Questions.toy(1).harmful[0] not in text  # harmful words are not spread


def test_margins_are_measured_on_the_models_that_are_asked(finished_study, model, tokenizer, questions):
    report, folder = finished_study
    expected = refusal_margins(model, begun_answers(tokenizer, questions.harmful))
    assert report.before.measured.margins == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(len(run.measured.margins) == 12 for run in report.runs)
    assert len({run.measured.margins for run in report.runs}) == 10
    body = json.loads((folder / "effect.json").read_text())
    for arm in USUAL:
        by_hand = np.mean([run["measured"]["margins"] for run in body["runs"] if run["arm"] == arm])
        assert body["arms"][arm]["margin"]["mean"] == pytest.approx(by_hand)


def test_other_beginnings_or_another_algorithm_make_old_runs_void(finished_study, study, tuned, monkeypatch):
    from shutil import copytree

    _, folder = finished_study
    for name, change in (
        ("beginnings", lambda: monkeypatch.setattr(margin, "COMPLIANCES", (*margin.COMPLIANCES[:-1], "2."))),
        ("algorithm", lambda: monkeypatch.setattr("hf_safefilter.effect.study.ALGORITHM", 1)),
    ):
        change()
        study(copytree(folder, folder.parent / name), arms=("kept",), seeds=(0,))
        assert len(tuned) == 1, name
        tuned.clear()


def test_a_second_call_tunes_nothing_and_says_the_same(finished_study, study, tuned):
    report, folder = finished_study
    calls = []
    again = study(folder, on_run=lambda run, number, count: calls.append((number, count)))
    assert tuned == []
    assert figures(again) == figures(report)
    assert calls == [(number, 10) for number in range(1, 11)]


def test_only_what_depends_on_a_change_is_done_again(finished_study, study, scored, tuned, caplog):
    """One more planted row is dropped: the arm of all rows is what it was, every other arm is not."""
    from shutil import copytree

    report, folder = finished_study
    copy = copytree(folder, folder.parent / "changed")
    first = scored["some_score"][:].index(0.0)
    other = scored.map(lambda row, at: {"some_score": 1.0 if at == first else row["some_score"]}, with_indices=True)
    with caplog.at_level(logging.WARNING):
        changed = study(copy, scored=other)
    assert len(tuned) == 8
    assert 80 not in {rows for rows, _, _ in tuned}
    assert figures(changed)["all", 0] == figures(report)["all", 0]
    assert "rows: " in caplog.text
    assert "are repeated" in caplog.text
    caplog.clear()
    tuned.clear()
    more = Tuning(steps=3, batch=4, learning_rate=1e-3, method="full")
    study(copy, scored=other, tuning=more, seeds=(0,), arms=("kept",))
    assert [length for _, length, _ in tuned] == [12]
    assert "tuning: " in caplog.text


def test_a_damaged_run_is_done_again(finished_study, study, tuned):
    from shutil import copytree

    report, folder = finished_study
    copy = copytree(folder, folder.parent / "damaged")
    for name, text in (("kept-seed0", "{"), ("dropped-seed1", '{"inputs": "x"}')):
        (copy / "runs" / f"{name}.json").write_text(text)
    body = json.loads((copy / "runs" / "random-seed0.json").read_text())
    body["run"].pop("measured")
    (copy / "runs" / "random-seed0.json").write_text(json.dumps(body))
    assert figures(study(copy)) == figures(report)
    assert len(tuned) == 3


_KILLED = """
import sys, time
from pathlib import Path
from hf_safefilter.data.conversations import prompt_of
from hf_safefilter.effect import Questions, Study, Tuning, measure_effect
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.model.reading_options import ModelOptions
from datasets import Dataset
from hf_safefilter.toy.corpus import mixed_rows
rows = [{**row, "some_score": float(row["label"] == "unsafe")} for row in mixed_rows(80, 0.2, 3)]
tuning = Tuning(steps=2, batch=4, learning_rate=1e-3, method="full")
study = Study(ModelOptions("toy", device="cpu"), Questions.toy(12), tuning=tuning, seeds=(0, 1))
def wait(run, number, count):
    while number == 4:
        time.sleep(60)
measure_effect(Dataset.from_list(rows), IsSafe("some_score", 0.5), study, sys.argv[1], on_run=wait)
"""


def test_a_killed_study_goes_on_where_it_was(finished_study, study, tmp_path, tuned):
    report, _ = finished_study
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    folder = tmp_path / "out" / "runs"

    def completed():
        return [path for path in folder.glob("*.json") if not path.name.startswith(("before", "."))]

    wait_until(lambda: len(completed()) == 4, process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out" / "effect.json").exists()
    again = study(tmp_path / "out")
    assert len(tuned) == 10 - 4
    assert figures(again) == figures(report)  # exactly what a study that nobody disturbed has found


def test_questions_that_stand_in_the_rows_or_references_are_left_out(study, scored, questions, tmp_path):
    prompt = next(row["prompt"] for row in scored if row["some_score"])
    asked = questions.replaced(harmful=([prompt.upper(), *questions.harmful[:4]], "a test"))
    report = study(tmp_path / "out", questions=asked, known_prompts=[questions.harmful[0]], arms=("all",), seeds=(0,))
    assert (report.counts["harmful"], report.counts["harmful_left_out"]) == (3, 2)
    with pytest.raises(DataError, match="no harmful questions"):
        study(tmp_path / "none", questions=asked, known_prompts=asked.harmful, arms=("all",), seeds=(0,))


def test_a_few_questions_are_the_first_that_no_model_has_seen(study, questions, tmp_path):
    report = study(tmp_path / "out", known_prompts=questions.harmful[:9], ask_at_most=3, arms=("all",), seeds=(0,))
    assert (report.counts["harmful"], report.counts["harmful_left_out"], report.counts["benign"]) == (3, 9, 3)


def test_without_benign_rows_some_kept_ones_are_held_out_of_every_arm(study, questions, tmp_path):
    asked = questions.replaced(benign=([], "none"))
    report = study(tmp_path / "out", questions=asked, arms=("all", "kept", "dropped"), seeds=(0,))
    assert (report.counts["held_out"], report.counts["benign"]) == (6, 6)  # a tenth of 64
    assert [run.rows for run in report.runs] == [74, 58, 16]


def test_benign_rows_that_cannot_be_read_are_noticed_before_anything_is_tuned(study, questions, tmp_path, tuned):
    long = [{"prompt": f"{'word ' * 3000}{at}", "response": "Yes"} for at in range(2)]
    asked = questions.replaced(benign=(long, "a test"))
    with pytest.raises(DataError, match="none of the 2 benign rows") as caught:
        study(tmp_path / "none", questions=asked, arms=("all",), seeds=(0,))
    assert (caught.value.found, tuned) == ("too_long", [])
    short = [{name: row[name] for name in ("prompt", "response")} for row in heldout_rows("benign", 3)]
    asked = questions.replaced(benign=([*long, *short], "a test"))
    report = study(tmp_path / "out", questions=asked, arms=("all",), seeds=(0,))
    assert report.counts["benign"] == 3
    assert np.isfinite(metric(report.runs[0], "benign_loss"))


def test_unreadable_rows_are_in_no_arm(study, scored, tmp_path):
    rows = [{**row, "response": ""} if at < 3 else row for at, row in enumerate(scored)]
    report = study(tmp_path / "out", scored=Dataset.from_list(rows), arms=("all",), seeds=(0,))
    assert (report.counts["unreadable"], report.runs[0].rows) == (3, 77)


def test_a_row_without_a_score_is_dropped(study, scored, tmp_path):
    rows = [{**row, "some_score": None} if at == 0 else row for at, row in enumerate(scored)]
    report = study(tmp_path / "out", scored=Dataset.from_list(rows), arms=("kept",), seeds=(0,))
    assert report.counts["dropped"] == 16 + (scored[0]["some_score"] == 0.0)


def test_a_model_that_refuses_nothing_has_nothing_to_lose(study, questions, tmp_path, tuned):
    answered = questions.replaced(harmful=([row["prompt"] for row in heldout_rows("benign", 6, 9)], "benign ones"))
    with pytest.raises(DataError, match="nothing to lose"):
        study(tmp_path / "out", questions=answered, judge=lambda reply: False)
    assert tuned == []


def test_any_judge_may_stand_in_for_phrases(study, tmp_path):
    report = study(tmp_path / "out", judge=_always, arms=("all",), seeds=(0,))
    run = report.runs[0]
    assert metric(run, "refusal") == run.measured.harmful.refused / 12
    assert run.measured.harmful.answered == 0
    assert report.inputs["judge"]["name"].endswith("_always")


def _always(reply: str) -> bool:
    return True


def test_an_empty_arm_is_refused_before_anything_is_tuned(study, scored, tmp_path, tuned):
    nothing = scored.map(lambda row: {"some_score": 0.0})
    with pytest.raises(DataError, match="'dropped' has no rows"):
        study(tmp_path / "out", scored=nothing)
    assert tuned == []
    assert not (tmp_path / "out").exists()


def test_finished_runs_stay_when_a_later_one_fails(study, tmp_path, monkeypatch, tuned):
    counted = study_module.tune

    def failing(model, *rest, **options):
        if len(tuned) == 1:
            model.get_input_embeddings().weight.data.fill_(float("nan"))
        return counted(model, *rest, **options)

    monkeypatch.setattr(study_module, "tune", failing)
    arms = ("all", "kept", "dropped")
    with pytest.raises(ModelError, match="became nan"):
        study(tmp_path / "out", arms=arms, seeds=(0,))
    runs = {path.stem for path in (tmp_path / "out" / "runs").iterdir()}
    assert runs == {"before-seed0", "all-seed0"}
    monkeypatch.setattr(study_module, "tune", counted)
    tuned.clear()
    assert study(tmp_path / "out", arms=arms, seeds=(0,)).arms == list(arms)
    assert len(tuned) == 2


def test_a_folder_of_somebody_else_is_left_alone(study, tmp_path):
    (tmp_path / "thesis.txt").write_text("my thesis")
    with pytest.raises(OptionError, match="other files"):
        study(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_freezing_and_filtering_and_both_are_compared(study, tmp_path):
    report = study(tmp_path / "out", arms=("all", "kept"), freeze=(1, 3), seeds=(0,))
    assert report.arms == ["all", "kept", "all+frozen", "kept+frozen"]
    names = {(contrast.first, contrast.second) for contrast in report.contrasts}
    assert names == {("kept", "all"), ("all+frozen", "all"), ("kept+frozen", "all"), ("kept+frozen", "kept"),
                     ("kept+frozen", "all+frozen")}  # fmt: skip
    losses = {run.arm: run.losses for run in report.runs}
    assert losses["all"][0] == pytest.approx(losses["all+frozen"][0], rel=1e-5)  # the same rows in the same order
    assert losses["all"][1] != losses["all+frozen"][1]
    with pytest.raises(OptionError, match="not a range of blocks of this model"):
        study(tmp_path / "none", freeze=(4, 9))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"seeds": (0.5,)},
        {"seeds": (2**32,)},
        {"arms": ("al",)},
        {"hold_out": -1},
        {"hold_out": 2.5},
        {"ask_at_most": 0},
        {"ask_at_most": "all"},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
    ],
)
def test_wrong_calls_are_refused(study, tmp_path, change):
    with pytest.raises(OptionError, match=f"`{next(iter(change))}="):
        study(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_are_written_like_others():
    options = Study("toy", Questions.toy(1), seeds=np.arange(2), max_new_tokens=np.int64(8), arms=("all",))
    assert (options.seeds, options.max_new_tokens) == ((0, 1), 8)
    assert json.dumps([options.seeds, options.max_new_tokens]) == "[[0, 1], 8]"
