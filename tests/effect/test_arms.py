"""Which rows an arm gets: by definition, for every seed."""

from collections import Counter

import numpy as np
import pytest

from hf_safefilter.effect.arms import ARMS, arms_of, choose_rows, match_lengths, schedule
from hf_safefilter.errors import DataError, OptionError

KEPT = np.arange(60) % 4 != 0
LENGTHS = np.where(KEPT, np.arange(60) % 7, np.arange(60) % 5)


def rows(name: str, seed: int = 0) -> list[int]:
    return choose_rows(name, KEPT, LENGTHS, seed).tolist()


def test_the_arms_are_what_they_are_called():
    assert rows("all") == list(range(60))
    assert rows("kept") == [at for at in range(60) if at % 4]
    assert rows("dropped") == [at for at in range(60) if not at % 4]
    for seed in range(5):
        for name in ("random", "length_matched"):
            drawn = rows(name, seed)
            assert len(set(drawn)) == len(drawn) == 15
            assert drawn == rows(name, seed)  # the same seed draws the same rows
        assert KEPT[rows("length_matched", seed)].all()
    assert rows("random", 0) != rows("random", 1)
    assert rows("length_matched", 0) != rows("length_matched", 1)
    dropped_by_chance = [at for seed in range(40) for at in rows("random", seed) if not KEPT[at]]
    assert 0.15 < len(dropped_by_chance) / 600 < 0.35  # from all rows: a quarter of them are dropped ones


def test_refusals_follow_the_kept_rows_in_their_own_arm_alone():
    drawn = choose_rows("refusals", KEPT, LENGTHS, 0, added=2).tolist()
    assert drawn == [*rows("kept"), 60, 61]
    for name in ("all", "kept", "dropped", "random", "length_matched"):
        assert choose_rows(name, KEPT, LENGTHS, 0, added=2).tolist() == rows(name)


def test_lengths_are_the_same_where_the_pool_has_them():
    """LENGTHS of dropped rows are 0..4, three of each; each is there seven times or so among the kept ones."""
    for seed in range(5):
        drawn = choose_rows("length_matched", KEPT, LENGTHS, seed)
        assert Counter(LENGTHS[drawn].tolist()) == Counter(LENGTHS[~KEPT].tolist())


def test_the_nearest_length_is_taken_where_none_is_the_same():
    lengths = np.array([10, 50, 12, 45, 99])
    draw = np.random.default_rng(0)
    assert match_lengths(np.array([0, 1]), np.array([2, 3, 4]), lengths, draw).tolist() == [2, 3]


def test_no_row_serves_twice():
    lengths = np.array([10, 10, 10, 11, 12, 90])
    for seed in range(9):
        matches = match_lengths(np.array([0, 1, 2]), np.array([3, 4, 5]), lengths, np.random.default_rng(seed))
        assert matches.tolist() == [3, 4, 5]
    with pytest.raises(DataError, match="3 rows cannot be matched"):
        match_lengths(np.array([0, 1, 2]), np.array([3, 4]), lengths, np.random.default_rng(0))


def test_matching_beats_chance_on_real_lengths(material):
    lengths, kept = material.lengths, material.kept
    gap = {}
    for name in ("length_matched", "random"):
        gap[name] = np.mean(
            [
                np.abs(np.sort(lengths[choose_rows(name, kept, lengths, seed)]) - np.sort(lengths[~kept])).mean()
                for seed in range(10)
            ]
        )
    assert gap["length_matched"] < gap["random"] / 3


@pytest.mark.parametrize("count", [1, 3, 16, 59, 60, 61, 333])
def test_a_schedule_has_the_length_asked_and_uses_rows_evenly(count):
    indices = np.arange(5, 65)
    order = schedule(indices, count, 7)
    assert len(order) == count
    times = np.bincount(order, minlength=65)
    assert times[:5].sum() == 0
    assert np.ptp(times[5:]) <= 1
    assert order.tolist() == schedule(indices, count, 7).tolist()
    assert count < 3 or order.tolist() != schedule(indices, count, 8).tolist()


def test_empty_arms_are_refused():
    for name in ("dropped", "random", "length_matched"):
        with pytest.raises(DataError, match="no rows"):
            choose_rows(name, np.ones(9, bool), np.ones(9), 0)
    with pytest.raises(DataError, match="'kept' has no rows"):
        choose_rows("kept", np.zeros(9, bool), np.ones(9), 0)
    with pytest.raises(DataError, match="matched in length"):
        choose_rows("length_matched", np.arange(9) > 6, np.ones(9), 0)


def test_names_of_arms():
    assert [arm.name for arm in arms_of(ARMS, None)] == list(ARMS)
    assert [arm.name for arm in arms_of(("all", "kept"), (1, 2))] == ["all", "kept", "all+frozen", "kept+frozen"]
    assert [arm.name for arm in arms_of(("dropped+frozen",), (1, 2))] == ["dropped+frozen"]
    for names, blocks, says in (
        (("kep",), None, "arms=kept"),
        ((), None, "names no arm"),
        (("all", "all"), None, "twice"),
        (("all+frozen",), None, "freeze="),
    ):
        with pytest.raises(OptionError, match=says):
            arms_of(names, blocks)
