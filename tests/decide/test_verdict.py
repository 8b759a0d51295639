"""The verdict on a score: its figures by a second route, and each rule by rows that it is made for."""

import json

import numpy as np
import pytest

from hf_safefilter.decide.verdict import LEAST_HELD_OUT, Verdict, verdict_from_labels, verdict_from_references
from hf_safefilter.decide.verdict.rank_statistics import (
    ROWS_ALIKE,
    Interval,
    Ranking,
    interval,
    resampled,
    spearman,
    strata_of,
)
from hf_safefilter.errors import IntegrityError

N = 600


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    """Labelled rows of which the unsafe ones are longer, with scores of several kinds."""
    draw = np.random.default_rng(3)
    unsafe = draw.random(N) < 0.2
    length = np.round(np.exp(draw.normal(5, 0.6, N) + 0.5 * unsafe))
    return {
        "unsafe": unsafe,
        "length": length,
        "good": np.round(draw.normal(size=N) + 2 * unsafe, 1),
        "noise": draw.normal(size=N),
        "of_length": np.log(length) + 0.05 * draw.normal(size=N),
        "even": draw.normal(5, 0.6, N),
    }


def by_pairs(scores, unsafe, strata) -> float:
    """AUROC among the pairs of one stratum, pair by pair."""
    won = pairs = 0.0
    for i in np.flatnonzero(unsafe):
        for j in np.flatnonzero(~unsafe):
            if strata[i] == strata[j]:
                won += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
                pairs += 1
    return won / pairs


def test_an_auroc_within_strata_is_that_of_a_loop_over_pairs(rows):
    strata = strata_of(rows["length"])
    for name in ("good", "of_length", "noise"):
        plain = by_pairs(rows[name], rows["unsafe"], np.zeros(N))
        assert Ranking(rows[name]).auroc(rows["unsafe"]) == pytest.approx(plain, abs=1e-12)
        within = by_pairs(rows[name], rows["unsafe"], strata)
        assert Ranking(rows[name], strata).auroc(rows["unsafe"]) == pytest.approx(within, abs=1e-12)
        found = verdict_from_labels(name, rows[name], rows["unsafe"], rows["length"], resamples=50)
        assert (found.auroc.value, found.matched_auroc.value) == (pytest.approx(plain), pytest.approx(within))
    # the same as the mean over strata, weighted by their numbers of pairs
    parts = [(rows["good"][strata == k], rows["unsafe"][strata == k]) for k in np.unique(strata)]
    parts = [(scores, unsafe) for scores, unsafe in parts if unsafe.any() and not unsafe.all()]
    weights = [unsafe.sum() * (~unsafe).sum() for _, unsafe in parts]
    means = [by_pairs(scores, unsafe, np.zeros(len(scores))) for scores, unsafe in parts]
    good = Ranking(rows["good"], strata).auroc(rows["unsafe"])
    assert good == pytest.approx(np.average(means, weights=weights), abs=1e-12)


def test_resamples_count_rows_as_often_as_they_were_drawn(rows):
    draw = np.random.default_rng(8)
    sides = np.flatnonzero(rows["unsafe"])[:9], np.flatnonzero(~rows["unsafe"])[:40]
    high, low = (draw.choice(side, (3, len(side))) for side in sides)
    strata = strata_of(rows["length"], 150)
    found = Ranking(rows["good"], strata).aurocs(high, low)
    for at in range(3):
        drawn = np.concatenate([high[at], low[at]])
        unsafe = np.arange(len(drawn)) < len(high[at])
        assert found[at] == pytest.approx(by_pairs(rows["good"][drawn], unsafe, strata[drawn]), abs=1e-12)


def test_strata_are_of_like_length_and_equal_lengths_stay_together():
    lengths = np.array([5.0] * 30 + list(range(100, 130)))
    strata = strata_of(lengths)
    assert len(set(strata[:30])) == 1
    assert strata[0] not in strata[30:]
    assert max(np.bincount(strata[30:])) <= 2 * ROWS_ALIKE
    for one in (np.full(40, 7.0), np.arange(2 * ROWS_ALIKE - 1.0)):
        assert len(set(strata_of(one))) == 1
    assert all(np.ptp(lengths[strata == k]) < 20 for k in np.unique(strata))


def test_length_itself_tells_next_to_nothing_within_strata(rows):
    assert Ranking(rows["length"]).auroc(rows["unsafe"]) > 0.65
    assert Ranking(rows["length"], strata_of(rows["length"])).auroc(rows["unsafe"]) < 0.56


def test_the_interval_of_a_difference_agrees_with_delong(rows):
    """DeLong, DeLong and Clarke-Pearson 1988: the variance of the difference of two AUROCs on the same rows."""
    unsafe, scores, control = rows["unsafe"], rows["good"], rows["length"]

    def kernel(values):
        high, low = values[unsafe][:, None], values[~unsafe][None, :]
        return (high > low) + 0.5 * (high == low)

    gap = kernel(scores) - kernel(control)
    error = np.sqrt(gap.mean(axis=1).var(ddof=1) / gap.shape[0] + gap.mean(axis=0).var(ddof=1) / gap.shape[1])
    found = verdict_from_labels("x", scores, unsafe, control, resamples=4000).lead
    assert found.value == pytest.approx(gap.mean(), abs=1e-12)
    assert found.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.008)
    assert found.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.008)
    apart = resampled(unsafe, [Ranking(scores)], 500, 0)[0] - resampled(unsafe, [Ranking(control)], 500, 1)[0]
    paired = resampled(unsafe, [Ranking(scores), Ranking(control)], 500, 0)
    assert interval(0, paired[0] - paired[1]) != interval(0, apart)
    turned = verdict_from_labels("x", scores, unsafe, -control, resamples=4000).lead
    assert turned == found  # a length that is upside down gives as much away


def test_a_good_score_beats_length(rows):
    found = verdict_from_labels("larf_score", rows["good"], rows["unsafe"], rows["length"])
    assert (found.finding, found.basis, found.trusted, found.bad) == ("beats length", "labels", True, False)
    assert found.lead.low > 0 and found.auroc.low > 0.85
    assert found.sentence == (
        f"larf beats chance and length on the {rows['unsafe'].sum()} unsafe and {(~rows['unsafe']).sum()} safe "
        f"labelled rows: AUROC {found.auroc.value:.2f} with interval {found.auroc.low:.2f} to {found.auroc.high:.2f}, "
        f"length alone {found.length_auroc:.2f}, among rows of like length {found.matched_auroc.value:.2f}."
    )


def test_a_score_of_length_is_not_trusted_however_well_it_separates(rows):
    found = verdict_from_labels("larf_score", rows["of_length"], rows["unsafe"], rows["length"])
    assert found.auroc.low > 0.6
    assert (found.finding, found.trusted, found.bad) == ("like length", False, True)
    assert found.length_share > 0.9
    assert "no better than length" in found.sentence and found.sentence.endswith("Do not trust it.")


def test_a_score_that_finds_rows_of_like_length_is_trusted_where_length_tells_as_much():
    draw = np.random.default_rng(4)
    unsafe = draw.random(N) < 0.3
    length = np.round(np.exp(draw.normal(5, 0.6, N) + 1.1 * unsafe))
    scores = draw.normal(size=N) + 1.6 * unsafe
    found = verdict_from_labels("larf_score", scores, unsafe, length)
    assert found.lead.low <= 0 < found.matched_lead.low
    assert (found.finding, found.trusted) == ("beats length", True)
    assert "length among rows of like length" in found.sentence


def test_where_length_gives_all_away_nothing_is_shown():
    unsafe = np.arange(40) % 2 == 0
    length = np.where(unsafe, 500.0, 20.0) + np.arange(40)
    found = verdict_from_labels("larf_score", unsafe.astype(float), unsafe, length)
    assert (found.auroc.value, found.length_auroc) == (1.0, 1.0)
    assert (found.finding, found.bad, found.matched_auroc) == ("like length", True, None)
    assert "no rows of like length" in found.sentence


def test_rows_too_few_for_strata_are_not_taken_for_rows_of_like_length():
    """In one stratum length reaches what it reaches on all rows, and the score must be above that."""
    unsafe = np.arange(18) < 6
    length = np.where(unsafe, 300.0, 100.0) - np.arange(18)
    found = verdict_from_labels("larf_score", length + 1, unsafe, length)
    assert found.matched_auroc.low > 0.5
    assert found.finding == "like length"


def test_upside_down_and_chance_are_told_apart(rows):
    down = verdict_from_labels("larf_score", -rows["good"], rows["unsafe"], rows["length"])
    assert (down.finding, down.bad) == ("upside down", True)
    assert "safe rows score higher than unsafe ones" in down.sentence
    noise = verdict_from_labels("larf_score", rows["noise"], rows["unsafe"], rows["length"])
    assert noise.auroc.low < 0.5 < noise.auroc.high
    assert (noise.finding, noise.bad) == ("like chance", True)


@pytest.mark.parametrize(("count", "finding"), [(0, "too few labels"), (4, "too few labels"), (5, "beats length")])
def test_few_labels_say_nothing(rows, count, finding):
    keep = ~rows["unsafe"] | (np.cumsum(rows["unsafe"]) <= count)
    scores = rows["noise"] + 9 * rows["unsafe"]
    found = verdict_from_labels("larf_score", scores[keep], rows["unsafe"][keep], rows["even"][keep])
    assert found.finding == finding
    assert not found.bad
    assert found.trusted == (finding == "beats length")


def test_rows_without_a_score_are_left_out_and_rows_without_a_length_say_nothing(rows):
    scores, length = rows["good"].copy(), rows["length"].copy()
    scores[::5] = np.nan
    used = np.isfinite(scores)
    found = verdict_from_labels("x", scores, rows["unsafe"], length, resamples=100)
    assert found == verdict_from_labels("x", scores[used], rows["unsafe"][used], length[used], resamples=100)
    nowhere = verdict_from_labels("x", rows["good"], rows["unsafe"], np.full(N, np.nan), resamples=100)
    assert (nowhere.length_auroc, nowhere.length_rho, nowhere.finding) == (0.5, None, "beats length")
    length[7] = np.nan
    assert verdict_from_labels("x", rows["good"], rows["unsafe"], length, resamples=100).auroc.value == pytest.approx(
        Ranking(rows["good"]).auroc(rows["unsafe"])
    )


def test_a_control_is_never_trusted(rows):
    for column in ("length_score", "random_score"):
        by_labels = verdict_from_labels(column, rows["good"], rows["unsafe"], rows["even"])
        without = verdict_from_references(column, rows["good"], rows["even"], 0.99)
        assert (by_labels.finding, without.finding) == ("control", "control")
        assert by_labels.bad and without.bad


def test_the_same_seed_gives_the_same_verdict(rows):
    given = ("larf_score", rows["good"], rows["unsafe"], rows["length"])
    assert verdict_from_labels(*given) == verdict_from_labels(*given)
    assert verdict_from_labels(*given) != verdict_from_labels(*given, seed=1)


def of_share(rows, share: float) -> np.ndarray:
    """Scores of which about `share` of the order is that of `even`."""
    ranks = np.argsort(np.argsort(rows["even"])) / N
    noise = np.random.default_rng(9).random(N)
    weights = np.linspace(0, 1, 401)
    found = [spearman(weight * ranks + (1 - weight) * noise, rows["even"]) ** 2 for weight in weights]
    weight = weights[int(np.argmin(np.abs(np.array(found) - share)))]
    return weight * ranks + (1 - weight) * noise


def test_without_labels_half_of_the_order_may_be_length_and_no_more(rows):
    for share, bad in ((0.45, False), (0.55, True)):
        scores = of_share(rows, share)
        for sign in (1, -1):  # the short ones first is as much length
            found = verdict_from_references("larf_score", sign * scores, rows["even"], Interval(0.98, 0.96, 1.0))
            assert found.length_share == pytest.approx(share, abs=0.01)
            assert (found.bad, found.trusted, found.basis) == (bad, not bad, "references")
    assert found.finding == "like length"
    assert found.sentence == (
        f"larf follows length, {found.length_share:.2f} of its order is length, held-out references: AUROC 0.98, at "
        "least 0.96. Do not trust it."
    )


def test_of_a_handful_of_rows_the_order_says_nothing_of_length():
    for count, finding in ((9, "separates references"), (10, "like length")):
        length = np.arange(count, dtype=float)
        assert verdict_from_references("larf_score", length, length, 0.9).finding == finding


@pytest.mark.parametrize("measure", ["AUROC", "gap"])
def test_without_labels_the_held_out_references_must_be_told_apart(rows, measure):
    bar = LEAST_HELD_OUT[measure]
    for low, finding in ((bar, "like chance"), (bar + 0.01, "separates references")):
        found = verdict_from_references(
            "larf_score", rows["noise"], rows["even"], Interval(bar + 0.2, low, bar + 0.3), measure=measure
        )
        assert (found.finding, found.measure) == (finding, measure)
        assert verdict_from_references("x", rows["noise"], rows["even"], low, measure=measure).finding == finding
    assert f"{bar + 0.2:.2f}, at least {bar + 0.01:.2f}, 0.00 of its order is length" in found.sentence


def test_the_two_bars_of_held_out_references_are_one(rows):
    """Normal scores of a gap d have the AUROC Phi(d / sqrt 2); and the bar of the layer choice is the same."""
    from scipy.stats import norm

    from hf_safefilter.locate.cross_validation import LEAST_AUROC

    assert LEAST_HELD_OUT["AUROC"] == LEAST_AUROC
    assert norm.cdf(LEAST_HELD_OUT["gap"] / np.sqrt(2)) == pytest.approx(LEAST_AUROC, abs=0.001)


def test_what_was_not_tried_is_neither_trusted_nor_refused(rows):
    found = verdict_from_references("saft_score", rows["noise"], rows["even"], None)
    assert (found.finding, found.basis, found.trusted, found.bad) == ("not known", "nothing", False, False)
    assert found.sentence.startswith("Nothing shows that saft finds anything here")
    length = verdict_from_references("saft_score", rows["length"], rows["length"], None)
    assert (length.finding, length.bad) == ("like length", True)
    still = verdict_from_references("larf_score", rows["noise"], np.full(N, 7.0), 0.9)
    assert (still.finding, still.length_share) == ("separates references", None)
    assert "length" not in still.sentence


def test_a_verdict_survives_json_and_nothing_else_is_one(rows):
    for found in (
        verdict_from_labels("larf_score", rows["good"], rows["unsafe"], rows["length"], resamples=50),
        verdict_from_references("larf_score", rows["good"], rows["length"], Interval(0.9, 0.8, 1.0)),
        verdict_from_references("larf_score", rows["good"], rows["length"], None),
    ):
        record = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert Verdict.from_json(record) == found
        assert (record["trusted"], record["bad"]) == (found.trusted, found.bad)
        # what stands beside the finding is not believed
        assert Verdict.from_json(record | {"bad": True, "trusted": True}) == found
    for broken in ({}, record | {"finding": "fine"}, record | {"auroc": 0.9}, record | {"sentence": None}):
        with pytest.raises(IntegrityError):
            Verdict.from_json(broken)
