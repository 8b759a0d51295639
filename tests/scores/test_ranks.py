"""Ranks against a count by hand, and scores of unlike scales made alike."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy.stats import rankdata

from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.scores.largest import LargestDeviation, LargestRank, scale_of
from hf_safefilter.scores.rank_average import RankAverage
from hf_safefilter.scores.ranks import Ranks, fit_ranks


def scored(**columns) -> Dataset:
    return Dataset.from_dict({f"{name}_score": np.asarray(v, dtype=np.float32) for name, v in columns.items()})


def average(ds, *names, on=None):
    step = RankAverage(fit_ranks(on or ds, [f"{name}_score" for name in names]))
    return np.array(ds.map(step, batched=True)["rank_average_score"], dtype=np.float32)


def test_ranks_by_hand():
    ds = scored(a=[3, 1, 1, 2], b=[10, 40, 30, 20])
    a, b = np.array([7, 2, 2, 5]) / 8, np.array([1, 7, 5, 3]) / 8
    np.testing.assert_allclose(average(ds, "a"), a)
    np.testing.assert_allclose(average(ds, "a", "b"), (a + b) / 2)


def test_ranks_agree_with_scipy_and_ignore_scale():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 40, size=500).astype(np.float32)
    np.testing.assert_allclose(average(scored(a=values), "a"), (rankdata(values) - 0.5) / 500, atol=1e-6)
    np.testing.assert_array_equal(average(scored(a=values), "a"), average(scored(a=np.exp(values / 9)), "a"))


def test_nan_stays_nan_and_does_not_move_the_others():
    ds = scored(a=[1, np.nan, 3, 2], b=[1, 2, np.inf, 4])
    assert np.isnan(average(ds, "a", "b")).tolist() == [False, True, True, False]
    np.testing.assert_allclose(average(ds, "a")[[0, 2, 3]], np.array([1, 5, 3]) / 6)


def test_other_rows_are_placed_among_the_fitted_ones():
    found = average(scored(a=[0, 1.5, 9]), "a", on=scored(a=[1, 2, 3, 4]))
    np.testing.assert_allclose(found, [0, 0.25, 1])


def test_the_largest_rank_names_the_method_that_gives_it():
    ds = scored(a=[3, 1, 1, 2, np.nan], b=[10, 40, 30, 20, 50])
    added = ds.map(LargestRank(fit_ranks(ds, ["a_score", "b_score"])), batched=True)
    a, b = np.array([7, 2, 2, 5]) / 8, np.array([1, 7, 5, 3]) / 10
    np.testing.assert_allclose(added["largest_rank_score"][:4], np.maximum(a, b), rtol=1e-6)
    assert added["largest_rank_by"][:] == ["a", "b", "b", "a", ""]
    assert np.isnan(added["largest_rank_score"][4])


def test_the_largest_deviation_is_from_the_rows_that_score_low():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=400), 7 + 100 * rng.normal(size=400)
    a[:40] += 9  # stand out in one score alone
    ds = scored(a=a, b=b)
    added = ds.map(LargestDeviation(fit_ranks(ds, ["a_score", "b_score"])), batched=True)
    expected = []
    for values in (a.astype(np.float32), b.astype(np.float32)):
        lowest, quartile = np.quantile(values, [0.05, 0.25])
        expected.append((values - quartile) / (quartile - lowest))
    np.testing.assert_allclose(added["largest_deviation_score"][:], np.max(expected, axis=0), rtol=1e-5, atol=1e-5)
    assert set(added["largest_deviation_by"][:40]) == {"a"} and set(added["largest_deviation_by"][40:]) == {"a", "b"}
    assert set(np.argsort(added["largest_deviation_score"][:])[-40:]) == set(range(40))  # ranks cannot tell
    ranked = ds.map(LargestRank(fit_ranks(ds, ["a_score", "b_score"])), batched=True)["largest_rank_score"][:]
    assert len(set(np.argsort(ranked)[-40:]) & set(range(40))) < 30


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1] * 30 + [2] * 20, (1, 1e-3)),
        ([1e-9] * 20 + [2e-9] * 20 + [1] * 10, (1e-9, 1e-3)),
        ([5] * 50, (5, 1)),
        (list(range(101)), (25, 20)),
    ],
)
def test_a_deviation_has_a_length_where_the_lowest_scores_are_equal(values, expected):
    assert scale_of(np.array(values, np.float32)) == pytest.approx(expected)


def test_splits_are_ranked_together(tmp_path):
    split = DatasetDict({"x": scored(a=[1, 3]), "y": scored(a=[2, 4])})
    ranks = fit_ranks(split, ["a_score"])
    assert ranks.sorted[0].tolist() == [1, 2, 3, 4]
    assert Ranks.load(ranks.save(tmp_path / "ranks")) == ranks == fit_ranks(scored(a=[4, 3, 2, 1]), ["a_score"])


def test_errors_say_what_to_do():
    ds = scored(a=[1, 2], b=[np.nan, np.nan])
    with pytest.raises(OptionError, match="once"):
        fit_ranks(ds, ["a_score", "a_score"])
    with pytest.raises(OptionError, match="once"):
        fit_ranks(ds, [])
    with pytest.raises(MissingError, match="c_score"):
        fit_ranks(ds, ["a_score", "c_score"])
    with pytest.raises(DataError, match="b_score"):
        fit_ranks(ds, ["a_score", "b_score"])
    with pytest.raises(MissingError, match="a_score"):
        RankAverage(fit_ranks(ds, ["a_score"]))({"b_score": [1.0]})
