import math
import random
import tracemalloc

import numpy as np
import pytest

from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.gap import GapOptions, angular_gap, find_gap, onset_and_flat


def test_golden_gap_in_both_readings():
    nn, nm = np.array([[0.9, 0.8], [0.95, 0.7], [1, 0.75]]), np.array([[0.9, 0.5], [0.9, 0.4], [0.96, 0.45]])
    np.testing.assert_allclose(angular_gap(nn, nm), [4.8790457269, 21.8466939403], atol=1e-9)
    np.testing.assert_allclose(angular_gap(nn, nm, "paper"), [7.9690883776, 21.9418737390], atol=1e-9)


def test_cosines_a_little_beyond_one_are_clipped():
    assert np.isfinite(angular_gap(np.array([[1 + 1e-9]]), np.array([[-1 - 1e-9]]))).all()


def states(n, layers, d, shift, seed):
    """Prompts that share a direction, and from each layer on part by `shift[layer]` towards another."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(1, 1, d)) * 3
    other = draw.normal(size=(1, 1, d)) * 3
    normal = common + draw.normal(size=(n, layers, d))
    malicious = common + draw.normal(size=(n, layers, d)) + np.asarray(shift)[None, :, None] * other
    return normal, malicious


def test_pairs_are_those_of_the_published_seeds():
    normal, malicious = states(12, 3, 5, [0, 0.5, 1], 0)
    found = find_gap(normal, malicious, GapOptions(pairs=40, permutations=19))

    def cosine(a, b):
        return [float(x @ y / math.sqrt(x @ x) / math.sqrt(y @ y)) for x, y in zip(a, b, strict=True)]

    for number in (0, 1, 39):
        random.seed(10 + number)
        one, other = random.sample(list(normal), 2)
        np.testing.assert_allclose(found.cosines["nn"][number], cosine(one, other), atol=1e-12)
        random.seed(100 + number)
        one, other = random.sample(list(malicious), 2)
        np.testing.assert_allclose(found.cosines["mm"][number], cosine(one, other), atol=1e-12)
        random.seed(1000 + number)
        one, other = random.sample(list(normal), 1)[0], random.sample(list(malicious), 1)[0]
        np.testing.assert_allclose(found.cosines["nm"][number], cosine(one, other), atol=1e-12)


def test_memory_does_not_grow_with_the_square_of_the_prompts():
    normal, malicious = states(2000, 2, 4, [0, 1], 0)
    tracemalloc.start()
    find_gap(normal, malicious, GapOptions(permutations=19))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # a table of all pairs would be 256e6


def test_a_planted_gap_is_found_where_it_was_planted():
    shift = [0, 0, 0, 0.3, 0.8, 1.3, 1.4, 1.4, 1.4, 1.4]
    found = find_gap(*states(40, 10, 64, shift, 1))
    assert (found.first, found.last, found.why) == (3, 5, "")
    assert found.chance < 0.01
    rows = found.table()
    assert [row["layer"] for row in rows] == [row["block"] + 1 for row in rows]
    assert rows[5]["gap"] == pytest.approx(found.degrees[5])


@pytest.mark.parametrize("seed", range(6))
def test_noise_gives_no_layer(seed):
    # few dimensions and prompts: gaps of several degrees by chance
    found = find_gap(*states(10, 8, 4, [0] * 8, seed), GapOptions(level=0.01))
    assert found.first is None and found.why


def test_the_rule_for_onset_and_flattening():
    options = GapOptions()

    def rule(*degrees):
        return onset_and_flat(np.array(degrees, float), options)

    assert rule(0, 0, 0.5, 2, 5, 9, 9.5, 9.5, 9.5) == (3, 5)  # 9 -> 9.5 is under a quarter of 4
    assert rule(0, 2, -1, 2, 5, 9, 9.5, 9.5) == (3, 5)  # does not last at 1
    assert rule(0, 0, 0, 0, 0) == (None, None)
    assert rule(0, 0, 1, 4, 8, 13) == (3, 5)  # grows to the end; 1 is not more than 1
    # the shipped curve of an unstated model, as far as it is published
    curve = [0, -1, -2, -3, -3.8, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1.8, 2.9, 5.8, 9.7, 11.3, 11.6, 10.6, 12, 13]
    assert rule(*curve) == (13, 17)


def test_what_cannot_be_measured_is_refused():
    normal, malicious = states(12, 3, 5, [0, 0, 1], 0)
    with pytest.raises(DataError, match="too few"):
        find_gap(normal[:9], malicious)
    with pytest.raises(DataError, match="not finite"):
        find_gap(normal * np.nan, malicious)
    with pytest.raises(DataError, match="zero"):
        find_gap(normal * 0, malicious)
    with pytest.raises(OptionError):
        GapOptions(reading="prose")
    with pytest.raises(OptionError):
        GapOptions(permutations=3)
