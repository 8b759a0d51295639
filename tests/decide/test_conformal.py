import numpy as np
import pytest
from scipy.stats import binom

from hf_safefilter.decide.conformal import conformal_threshold
from hf_safefilter.errors import DataError, OptionError


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("loss", "confidence", "n"), [(0.1, 0.9, 40), (0.05, 0.95, 150)])
def test_the_promise_holds_over_many_draws(ties, loss, confidence, n):
    """The share lost is known exactly for uniform scores, so the promise can be counted: 2,000 draws, seeded."""
    draw = np.random.default_rng(11)
    draws, broken, losses = 2000, 0, []
    for _ in range(draws):
        good = draw.random(n)
        if ties:
            good = np.floor(good * 10) / 10
        threshold = conformal_threshold(good, loss, confidence)
        lost = np.mean(np.arange(10) / 10 >= threshold) if ties else 1 - min(threshold, 1.0)
        losses.append(lost)
        broken += lost > loss
    assert broken <= binom.ppf(0.999, draws, 1 - confidence)
    if not ties:  # and it is not won by keeping everything
        assert broken >= binom.ppf(0.001, draws, 1 - confidence) * 0.3
        assert np.mean(losses) > 0


def test_the_smallest_place_that_holds_is_taken():
    """Against the definition: P(Binomial(n, loss) <= rows above place r) <= 1 - confidence."""
    good, loss, confidence = np.arange(200.0), 0.1, 0.9
    place = int(np.floor(conformal_threshold(good, loss, confidence)))  # score of the place, as scores are 0..199
    above = [binom.cdf(len(good) - 1 - r, len(good), loss) for r in range(len(good))]
    expected = next(r for r, chance in enumerate(above) if chance <= 1 - confidence + 1e-12)
    assert place == expected


def test_too_few_rows_says_how_many_are_needed():
    with pytest.raises(OptionError, match="at least 59 rows"):
        conformal_threshold(np.zeros(58), 0.05, 0.95)
    assert conformal_threshold(np.zeros(59), 0.05, 0.95) > 0


def test_rows_that_could_not_be_scored_count_as_lost():
    scores = np.arange(200.0)
    scores[:10] = np.nan
    assert conformal_threshold(scores, 0.2, 0.9) > conformal_threshold(np.arange(10, 210.0) - 10, 0.2, 0.9)
    scores[:100] = np.nan
    with pytest.raises(DataError, match="100 of 200"):
        conformal_threshold(scores, 0.2, 0.9)


@pytest.mark.parametrize(("loss", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 1.0), (0.1, True), ("a", 0.9)])
def test_a_promise_outside_reason_is_refused(loss, confidence):
    with pytest.raises(OptionError):
        conformal_threshold(np.zeros(500), loss, confidence)
