import math

import numpy as np
import pytest

from hf_safefilter.errors import OptionError
from hf_safefilter.locate.scaling import ScalingOptions, find_sensitive

OPTIONS = ScalingOptions()


def refusals(chances, n=60, seed=0):
    """Which of `n` prompts are refused, by block and scale, drawn with one number a prompt: paired as real ones are."""
    draw = np.random.default_rng(seed).random(n)
    return np.array([[draw < chance for chance in row] for row in chances]), draw < 0.4


FLAT = [0.4] * 6
RISING = [0.1, 0.2, 0.3, 0.5, 0.6, 0.7]
FALLING = RISING[::-1]
DAMAGED = [0.1, 0.3, 0.4, 0.4, 0.3, 0.1]  # fewer refusals either way


def test_the_block_whose_refusals_follow_its_loudness_is_chosen():
    refused, plain = refusals([FLAT, DAMAGED, RISING, FALLING, FLAT])
    found = find_sensitive(refused, plain)
    assert (found.best, found.why) == (2, "")
    assert found.top[0] == 2
    assert found.low[2] > 0 and found.chance < 0.01 and found.chosen_share > 0.9
    counts = refused.sum(2)
    by_hand = (counts[:, 5] - counts[:, 0] + counts[:, 4] - counts[:, 1] + counts[:, 3] - counts[:, 2]) / 60
    np.testing.assert_allclose(found.score, by_hand)


def test_the_last_blocks_are_ranked_too():
    refused, plain = refusals([FLAT, FLAT, FLAT, RISING])
    assert find_sensitive(refused, plain).best == 3


def test_a_block_that_dips_around_one_is_passed_over():
    dipping = [0.0, 0.1, 0.6, 0.3, 0.9, 0.9]  # large difference, but 0.9 refuses more than 1 does
    refused, plain = refusals([dipping, RISING])
    assert find_sensitive(refused, plain).best == 1


def test_ties_go_to_the_lower_block():
    refused, plain = refusals([FLAT, RISING, RISING])
    assert find_sensitive(refused, plain).best == 1


@pytest.mark.parametrize("seed", range(8))
def test_noise_gives_no_block(seed):
    draw = np.random.default_rng(seed)
    refused = draw.random((12, 6, 30)) < 0.3
    plain = draw.random(30) < 0.3
    found = find_sensitive(refused, plain, ScalingOptions(level=0.01))
    assert found.best is None and found.why


def test_noise_is_taken_for_a_block_no_more_often_than_the_level_says():
    # the best of the blocks that noise lets pass is better than the best of blocks that were named beforehand
    options, chosen = ScalingOptions(resamples=200), 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        found = find_sensitive(draw.random((32, 6, 60)) < 0.3, draw.random(60) < 0.3, options)
        chosen += found.best is not None
    assert chosen <= 17  # of 10 expected; 95 % of such counts are below


@pytest.mark.parametrize(("value", "said"), [(False, "refuses none"), (True, "refuses every")])
def test_a_model_that_never_or_always_refuses_has_no_signal(value, said):
    found = find_sensitive(np.full((4, 6, 20), value), np.full(20, value))
    assert found.best is None and said in found.why


def test_saturated_refusals_are_said_to_be():
    refused = np.ones((3, 6, 20), bool)
    refused[0, 0, :4] = False  # quieter still, block 0 lets four through: too few to tell
    found = find_sensitive(refused, np.ones(20, bool), ScalingOptions(level=0.001))
    assert found.best is None and "refuses all of the prompts" in found.why


@pytest.mark.parametrize(
    "scales", [(), (1.2,), (0.8, 1.0, 1.2), (0.8, 0.9), (0.8, 0.8, 1.2, 1.3), (0, 1.2), (0.8, math.inf)]
)
def test_scales_that_are_no_pairs_are_refused(scales):
    with pytest.raises(OptionError):
        ScalingOptions(scales=scales)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"resamples": 0}, {"level": 0}, {"level": 2}])
def test_numbers_that_make_no_test_are_refused(wrong):
    with pytest.raises(OptionError):
        ScalingOptions(**wrong)


def test_pairs_go_from_the_outside_in():
    assert OPTIONS.pairs == [(1.3, 0.7), (1.2, 0.8), (1.1, 0.9)]
