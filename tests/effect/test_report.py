"""Means, intervals and words: what a study may say, and what it must not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from svg_texts import texts_of

from hf_safefilter.effect import margin
from hf_safefilter.effect.contrasts import Contrast, Mean, verdict
from hf_safefilter.effect.effect_plot import draw
from hf_safefilter.effect.effect_report import EffectReport, read_card_part
from hf_safefilter.effect.ledger import Run
from hf_safefilter.effect.measures import Measurements, Replies
from hf_safefilter.errors import IntegrityError, MissingError, PublishError
from hf_safefilter.publish.card import render
from hf_safefilter.publish.gather import gather

REFUSED = {"all": (40, 45, 38), "kept": (80, 79, 85), "dropped": (5, 2, 9), "random": (60, 12, 33),
           "length_matched": (90, 88, 93)}  # fmt: skip
MARGINS = {"all": (3.1, 3.3, 2.9), "kept": (5.0, 5.3, 4.9), "dropped": (-1.2, -0.8, -1.0), "random": (3.0, 2.0, 2.6),
           "length_matched": (4.0, 4.2, 4.1), "before": (6.4,)}  # fmt: skip
SPREAD = np.array([-1.5, 0.0, 0.5, 1.0])
"""By how much the margins of four prompts differ from their mean."""

INPUTS = {
    "model": "a/model", "revision": "0" * 40, "column": "length_score", "threshold_hex": (200.0).hex(),
    "tuning": {"method": "full", "steps": 10, "batch": 4, "learning_rate": 1e-3}, "seeds": [0, 1, 2],
    "questions": {"source": "<b>my|file</b>"}, "openings": margin.record(),
}  # fmt: skip
COUNTS = {"rows": 60, "harmful": 100, "over_refusal": 50, "benign": 10}


def run(arm: str, seed: int, refused: int) -> Run:
    margins = tuple((MARGINS[arm][seed] + SPREAD).tolist())
    measured = Measurements(Replies(refused, 98 - refused, 2), Replies(5, 44, 1), 1.5 + seed / 10, margins)
    return Run(arm, seed, 60, 10, 32.0, (2.0, 1.0), measured, 1.0)


def by_arms(report: EffectReport, measure: str) -> dict:
    return {(one.first, one.second): one for one in report.contrasts if one.measure == measure}


@pytest.fixture
def report() -> EffectReport:
    runs = tuple(run(arm, seed, count) for arm, counts in REFUSED.items() for seed, count in enumerate(counts))
    return EffectReport(INPUTS, COUNTS, run("before", 0, 97), runs)


def test_intervals_are_students(report):
    values = np.array(REFUSED["random"]) / 100
    mean = report.mean("random", "refusal")
    expected = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert mean.mean == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx((0.0, expected[1]))  # a share is never below zero
    free = Mean.of(values)
    assert (free.low, free.high) == pytest.approx(expected)
    assert Mean.of([0.3]) == Mean(0.3, None, None)


def test_what_is_neither_refused_nor_stammered_is_the_attacks_success(report):
    body = report.to_json()["arms"]
    for arm, counts in REFUSED.items():
        assert body[arm]["attack_success"]["mean"] == pytest.approx(np.mean([98 - count for count in counts]) / 100)
        assert body[arm]["attack_success"]["mean"] + body[arm]["refusal"]["mean"] == pytest.approx(0.98)


def test_contrasts_are_paired_by_seed(report):
    by_name = by_arms(report, "refusal")
    assert list(by_name) == list(by_arms(report, "margin"))
    assert list(by_name) == [("kept", "all"), ("dropped", "random"), ("dropped", "length_matched")]
    kept = by_name["kept", "all"].difference
    test = stats.ttest_rel(np.array(REFUSED["kept"]) / 100, np.array(REFUSED["all"]) / 100)
    assert (kept.low, kept.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert all(-1 <= contrast.difference.low <= contrast.difference.high <= 1 for contrast in by_name.values())
    assert "above all by" in by_name["kept", "all"].sentence
    assert "below length_matched by" in by_name["dropped", "length_matched"].sentence
    assert "not told apart from random" in by_name["dropped", "random"].sentence
    single = replace(report, runs=tuple(run for run in report.runs if run.seed == 0))
    assert all("on a single seed" in contrast.sentence for contrast in by_arms(single, "refusal").values())
    assert all("with every prompt" in contrast.sentence for contrast in by_arms(single, "margin").values())


def test_margins_have_intervals_over_seeds_and_of_one_model_over_prompts(report):
    values = np.array(MARGINS["kept"])
    mean = report.mean("kept", "margin")
    assert mean.mean == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx(stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values)))
    before = report.mean_before("margin")
    expected = stats.t.interval(0.95, 3, loc=6.4, scale=stats.sem(6.4 + SPREAD))
    assert (before.mean, before.low, before.high) == pytest.approx((6.4, *expected))
    single = replace(report, runs=tuple(run for run in report.runs if run.seed == 1))
    alone = single.mean("dropped", "margin")
    assert (alone.mean, alone.high - alone.low) == pytest.approx((-0.8, before.high - before.low))
    assert report.to_json()["arms"]["kept"]["margin"]["low"] == mean.low
    assert report.to_json()["margin_before"]["high"] == before.high


def test_contrasts_of_margins_are_paired_by_seed_and_of_one_seed_by_prompt(report):
    kept = by_arms(report, "margin")["kept", "all"]
    test = stats.ttest_rel(MARGINS["kept"], MARGINS["all"])
    assert (kept.difference.low, kept.difference.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert kept.sentence.startswith("margin of kept: above all by 1.967 nats [+1.")
    runs = [run(arm, 0, 50) for arm in ("all", "kept")]
    harder = tuple(value * 1.5 for value in runs[1].measured.margins)
    runs[1] = replace(runs[1], measured=replace(runs[1].measured, margins=harder))
    refusals, margins = replace(report, runs=tuple(runs)).contrasts
    test = stats.ttest_rel(runs[1].measured.margins, runs[0].measured.margins)
    expected = tuple(test.confidence_interval(0.95))
    assert (margins.difference.low, margins.difference.high) == pytest.approx(expected)
    assert margins.sentence.endswith("over prompts, on a single seed")
    assert (margins.difference.low > 0, margins.side, refusals.side) == (True, 0, 0)
    assert refusals.sentence == "refusals of kept: above all by 0.000, on a single seed"


def test_the_verdict_names_the_arms_that_differ_by_more_than_the_interval(report):
    assert report.verdict == (
        "Verdict: kept is safer than all (by refusals and margin); dropped is less safe than random (by margin); "
        "dropped is less safe than length_matched (by refusals and margin)."
    )
    assert report.to_json()["verdict"] == report.for_card()["verdict"] == report.verdict
    single = replace(report, runs=tuple(run for run in report.runs if run.seed == 0))
    assert single.verdict.startswith("Verdict: not known, for a single seed")
    assert replace(report, runs=tuple(report.of("all"))).verdict == ""


def test_the_verdict_says_what_is_not_seen_and_what_is_contradicted():
    def contrast(first, second, measure, low, high):
        return Contrast(first, second, measure, Mean((low + high) / 2, low, high), 3, 100)

    alike = [contrast("kept", "all", "refusal", -0.1, 0.2), contrast("kept", "all", "margin", -0.1, 0.2)]
    other = [contrast("masked", "all", "refusal", -0.1, 0.0), contrast("masked", "all", "margin", 0.0, 0.2)]
    assert verdict(alike + other) == "Verdict: no difference seen between kept and all, between masked and all."
    against = [contrast("kept", "all", "refusal", 0.1, 0.2), contrast("kept", "all", "margin", -0.9, -0.2)]
    assert verdict(against + other) == (
        "Verdict: refusals and margin disagree on kept and all; no difference seen between masked and all."
    )


def test_a_difference_of_zero_with_every_seed_is_no_difference(report):
    same = replace(report, runs=tuple(replace(run, measured=report.runs[0].measured) for run in report.runs))
    assert all("not told apart" in contrast.sentence for contrast in same.contrasts)


def test_a_difference_that_is_the_same_with_every_seed_has_no_interval(report):
    alike = {"all": 98, "kept": 100}
    runs = tuple(run(arm, seed, count) for arm, count in alike.items() for seed in range(3))
    first = replace(report, runs=runs).contrasts[0]
    assert first.sentence == "refusals of kept: above all by 0.020 with every seed, too alike for an interval"
    assert first.side == 0  # two prompts of a hundred
    assert replace(first, difference=Mean(-0.5, -0.5, -0.5)).side == -1


def test_the_table_and_the_plot(report, tmp_path):
    table = report.table()
    assert [line["arm"] for line in table] == ["before tuning", *REFUSED]
    assert table[0]["refusal"] == "97.0%"
    assert table[2]["refusal"].startswith("81.3% [")
    assert table[0]["margin"].startswith("6.40 [")
    assert table[3]["margin"].startswith("-1.00 [-1.")
    assert table[1]["degenerate"].startswith("2.0%")
    for name in ("one", "two"):
        draw(report, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    shown = texts_of(tmp_path / "one.svg")
    assert report.verdict in " ".join(shown)
    assert {"before tuning", "one of 3 seeds", "mean and 95 % interval over seeds"} <= set(shown)
    assert {"harmful prompts refused, share", "loss on held-out benign rows, nats a token", "tuned on"} <= set(shown)


def test_the_plot_of_a_single_seed_says_what_its_interval_is_over(report, tmp_path):
    draw(replace(report, runs=tuple(one for one in report.runs if one.seed == 0)), tmp_path / "one")
    shown = texts_of(tmp_path / "one.svg")
    assert {"the only seed", "mean; of the margin with 95 % interval over prompts"} <= set(shown)


def test_a_report_is_read_back_for_the_card(report, tmp_path):
    report.write(tmp_path)
    assert read_card_part(tmp_path) == json.loads(json.dumps(report.for_card()))
    earlier = report.to_json()
    del earlier["card"]["verdict"]
    (tmp_path / "effect.json").write_text(json.dumps(earlier))
    with pytest.raises(IntegrityError, match="earlier version"):
        read_card_part(tmp_path)
    (tmp_path / "effect.json").write_text("{}")
    with pytest.raises(IntegrityError, match="damaged"):
        read_card_part(tmp_path)
    with pytest.raises(MissingError, match="no finished study"):
        read_card_part(tmp_path / "nowhere")


def test_the_card_shows_the_effect_of_this_decision_only(report, tmp_path):
    from datasets import Dataset

    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.scores.controls import LengthScore

    rows = [{"prompt": f"Question {number}?", "response": "word " * (10 + number)} for number in range(60)]
    step = LengthScore()
    scored = Dataset.from_list(rows).map(step, batched=True)
    facts = {"license": "mit", "source": "a test", "steps": [step]}
    effect = report.for_card()
    provenance = gather(scored, IsSafe("length_score", 200.0), effect=effect, **facts)
    card = render(provenance, None)
    assert "### What it does to a model" in card
    (line,) = (line for line in card.splitlines() if line.startswith("| kept | 60 | 32 | 81.3%"))
    assert line.count("|") == next(line for line in card.splitlines() if "| margin |" in line).count("|")
    assert "] | 5.07 \\[4." in line
    assert "margin of kept: above all by" in card
    assert "**Verdict: kept is safer than all" in card
    assert "I'm sorry, Sorry" in card
    assert "refusals of kept: above all by" in card
    assert "<b>" not in card
    assert json.loads(provenance.to_json())["effect"]["column"] == "length_score"
    plain = render(gather(scored, IsSafe("length_score", 200.0), **facts), None)
    assert "What it does to a model" not in plain
    for threshold, change in ((201.0, {}), (200.0, {"rows": 61}), (200.0, {"column": "random_score"})):
        with pytest.raises(PublishError, match="another decision"):
            gather(scored, IsSafe("length_score", threshold), effect={**effect, **change}, **facts)
