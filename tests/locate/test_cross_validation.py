from types import SimpleNamespace

import numpy as np
import pytest

from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.cross_validation import choose_layer


def references(strength: dict, n_unsafe: int = 40, n_safe: int = 40, answers=("yes indeed", "no thanks!")):
    """Reference vectors that are told apart along one direction, by `strength[layer]` standard deviations."""
    draw = np.random.default_rng(0)
    vectors = {}
    for layer, gap in strength.items():
        unsafe, safe = draw.normal(size=(n_unsafe, 16)), draw.normal(size=(n_safe, 16))
        unsafe[:, 0] += gap
        vectors[layer] = (unsafe.astype(np.float32), safe.astype(np.float32))
    sides = {"unsafe": (answers[0], n_unsafe), "safe": (answers[1], n_safe)}

    def rows(side):
        answer, count = sides[side]
        return [SimpleNamespace(messages=(("user", "?"), ("assistant", answer))) for _ in range(count)]

    return SimpleNamespace(layers=tuple(strength), vectors=vectors.__getitem__, rows=rows)


def test_the_layer_that_separates_is_chosen_by_every_method():
    choice = choose_layer(references({1: 0.0, 2: 4.0, 3: 1.0}))
    assert (choice.layer, choice.signal) == (2, True)
    best = {candidate.layer: candidate.auroc for candidate in choice.candidates if candidate.method == choice.method}
    assert best[2] > best[3] > 0.6
    assert next(candidate.block for candidate in choice.candidates if candidate.layer == 2) == 1


def test_noise_is_called_noise():
    """Held-out scoring must not see the fold it scores: on pure noise the AUROC stays near one half."""
    choice = choose_layer(references({1: 0.0, 2: 0.0}, 100, 100))
    assert not choice.signal
    assert all(abs(candidate.auroc - 0.5) < 0.15 for candidate in choice.candidates)


def test_a_leak_would_be_seen():
    """Every row twice, once a side apart: pairs share a fold, so a copy of the prompt cannot help its partner."""
    pairs = references({1: 0.0}, 50, 50)
    unsafe, safe = pairs.vectors(1)
    noisy = {1: (unsafe, unsafe + np.random.default_rng(1).normal(size=unsafe.shape).astype(np.float32) * 1e-3)}
    pairs.vectors = noisy.__getitem__
    choice = choose_layer(pairs, methods=("nearest",))
    assert abs(choice.candidates[0].auroc - 0.5) < 0.2


def test_length_is_shown_beside_the_methods():
    long = choose_layer(references({1: 3.0}, answers=("yes " * 50, "no")))
    assert long.length_auroc == 1.0
    assert choose_layer(references({1: 3.0}, answers=("same", "same"))).length_auroc == 0.5
    assert long.shown()[-1]["layer"] == "length alone"
    assert long.to_json()["candidates"][0]["method"] == "larf"


def test_sides_of_unlike_size_work_and_too_few_do_not():
    assert choose_layer(references({1: 3.0}, 40, 25)).layer == 1
    with pytest.raises(DataError, match="too few"):
        choose_layer(references({1: 3.0}, 40, 9))
    with pytest.raises(OptionError, match="saft"):
        choose_layer(references({1: 3.0}), methods=("saft",))
    with pytest.raises(OptionError, match="folds"):
        choose_layer(references({1: 3.0}), folds=1)
