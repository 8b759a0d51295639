import numpy as np
import pytest

from hf_safefilter.errors import OptionError
from hf_safefilter.locate.bounds import (
    LEVEL,
    BoundsOptions,
    alphas,
    chance_of,
    find_bounds,
    sweep_alphas,
    window_around,
)

# Refusals as published (upper bound with the lower fixed; lower bound with the upper fixed), by model and factor.
PUBLISHED = {
    "Phi-3-mini, 0.8": (0.8, 11, dict(zip(range(13, 18), (209, 190, 149, 181, 189), strict=True)), 15,
                        dict(zip((13, 12, 11, 10, 9), (237, 182, 149, 177, 163), strict=True)), (11, 15)),
    "Phi-3-mini, 1.2": (1.2, 11, dict(zip(range(13, 18), (292, 329, 368, 311, 299), strict=True)), 15,
                        dict(zip((9, 10, 11, 12, 13), (330, 350, 368, 293, 279), strict=True)), (11, 15)),
    "Llama-2-7b-chat": (1.15, 9, dict(zip(range(12, 17), (187, 227, 237, 218, 219), strict=True)), 14,
                        dict(zip((8, 7, 6, 5, 4), (263, 268, 297, 189, 202), strict=True)), (6, 14)),
    "Llama-3-8B": (1.2, 7, dict(zip(range(10, 15), (272, 241, 283, 266, 256), strict=True)), 12,
                   dict(zip((8, 7, 6, 5, 4), (334, 283, 371, 358, 223), strict=True)), (6, 12)),
    "gemma-2b": (1.1, 8, dict(zip(range(9, 14), (310, 335, 368, 343, 326), strict=True)), 11,
                 dict(zip((8, 7, 6, 5, 4), (368, 371, 407, 404, 323), strict=True)), (6, 11)),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_counts_give_the_published_ranges(model):
    alpha, first, uppers, upper, lowers, expected = PUBLISHED[model]
    asked = []

    def count(ranges, by):
        asked.append((ranges, by))
        return [uppers[high] if low == first and number == 0 else lowers[low]
                for number, (low, high) in ((0 if len(asked) == 1 else 1, blocks) for blocks in ranges)]  # fmt: skip

    best = find_bounds(count, first, list(uppers), list(lowers), alpha)
    assert (best.first, best.last) == expected
    assert [by for _, by in asked] == [alpha, alpha]
    assert asked[1][0] == [(low, upper) for low in lowers]  # upper first, then lower with that upper
    assert len(best.tried) == len(uppers) + len(lowers)


def test_ties_go_to_the_narrower_range():
    best = find_bounds(lambda ranges, by: [7] * len(ranges), 3, [4, 5, 6], [2, 3, 4], 1.2)
    assert (best.first, best.last) == (4, 4)


def test_the_sweep_stops_at_the_first_factor_that_moves_enough():
    # Llama-3 at 1.05: 199, 197, 192, 194 of 721 is flat; at 1.2 the published counts spread by 16
    counts = {1.05: [199, 197, 192, 194, 195], 1.1: [210, 205, 220, 203, 207], 1.15: [241, 232, 250, 236, 234],
              1.2: [272, 241, 283, 266, 256]}  # fmt: skip
    asked = []

    def count(ranges, by):
        asked.append(by)
        return counts[by]

    alpha, swept = sweep_alphas(count, 7, range(10, 15), "amplify", 721, BoundsOptions(least_spread=15 / 721))
    assert alpha == 1.2 and asked == [1.05, 1.1, 1.15, 1.2]
    assert swept[0]["spread"] == pytest.approx(2.70, abs=0.01)
    alpha, swept = sweep_alphas(lambda ranges, by: [5] * 5, 7, range(10, 15), "attenuate", 721, BoundsOptions())
    assert alpha is None and [step["alpha"] for step in swept] == list(alphas("attenuate", BoundsOptions()))
    assert swept[0]["alpha"] == 0.95


def words(refused, other="answer"):
    return [["refusal" if is_refused else other for is_refused in row] for row in refused]


def picked(refused, plain, alpha=1.2):
    best = int(np.argmax(refused.sum(1) * (1 if alpha > 1 else -1)))
    return chance_of(words([plain])[0], words(refused), best, alpha, len(refused))


def test_a_range_that_stands_out_is_told_from_one_that_noise_put_first():
    noise, alike, clear = 0, 0, 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        plain = draw.random(110) < 0.3
        ranges = np.where(draw.random((9, 110)) < 0.15, draw.random((9, 110)) < 0.3, plain)
        noise += picked(ranges, plain) <= LEVEL
        alike += picked(ranges | (draw.random((9, 110)) < 0.2), plain) <= LEVEL  # which one is best means nothing
        ranges[4] |= draw.random(110) < 0.3
        clear += picked(ranges, plain) <= LEVEL
    assert noise <= 2 and alike <= 4 and clear >= 38


def test_a_range_that_only_makes_the_model_stammer_has_attenuated_nothing():
    plain, refused = np.ones(40, bool), np.ones((5, 40), bool)
    refused[2, :20] = False
    assert chance_of(words([plain])[0], words(refused), 2, 0.8, 5) <= LEVEL
    assert chance_of(words([plain])[0], words(refused, "degenerate"), 2, 0.8, 5) == 1
    assert chance_of(words([plain])[0], words(refused), 2, 1.2, 5) == 1  # the wrong way round
    assert chance_of(words([plain])[0], words(np.ones((5, 40), bool)), 2, 0.8, 5) == 1


def test_windows_stay_inside_the_model():
    assert window_around(5, 5, 0, 9) == [3, 4, 5, 6, 7]
    assert window_around(0, 5, 0, 9) == [0, 1, 2, 3, 4]
    assert window_around(9, 5, 0, 9) == [5, 6, 7, 8, 9]
    assert window_around(2, 5, 1, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1},
        {"alpha": -1},
        {"alpha": float("inf")},
        {"window": 1},
        {"step": 0},
        {"most_steps": 0},
        {"max_new_tokens": 0},
        {"initial": (1,)},
        {"initial": ("a", "b")},
        {"initial": (1.0, 2)},
        {"initial": (True, 2)},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(OptionError):
        BoundsOptions(**wrong)
