"""The layer and method that separate held-out references, whole rows held out at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.ragged import Ragged, offsets_of
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.cross_validation import _folds, choose_layer


def in_rows(vectors, owners=None):
    """Vectors, the i-th of which is of row `owners[i]`; each of a row of its own if these are left out."""
    owners = np.arange(len(vectors)) if owners is None else owners
    return Ragged(vectors.astype(np.float32), offsets_of(np.bincount(owners)))


def references(strength: dict, n_unsafe: int = 40, n_safe: int = 40, answers=("yes indeed", "no thanks!")):
    """Reference vectors that are told apart along one direction, by `strength[layer]` standard deviations."""
    draw = np.random.default_rng(0)
    vectors = {}
    for layer, gap in strength.items():
        unsafe, safe = draw.normal(size=(n_unsafe, 16)), draw.normal(size=(n_safe, 16))
        unsafe[:, 0] += gap
        vectors[layer] = in_rows(unsafe), in_rows(safe)
    sides = {"unsafe": (answers[0], n_unsafe), "safe": (answers[1], n_safe)}

    def rows(side):
        answer, count = sides[side]
        (said,) = as_conversations([{"prompt": "?", "response": answer}])
        return [SimpleNamespace(conversation=said) for _ in range(count)]

    return SimpleNamespace(
        layers=tuple(strength),
        rows_at=vectors.__getitem__,
        rows=rows,
        counts={side: count for side, (_, count) in sides.items()},
    )


def in_spans(index, unsafe, safe, owners):
    """The same references with other vectors, of which row `owners[i]` of its side has the i-th."""
    index.rows_at = {1: (in_rows(unsafe, owners), in_rows(safe, owners))}.__getitem__
    index.counts = dict.fromkeys(("unsafe", "safe"), int(owners.max()) + 1)
    return index


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
    unsafe = pairs.rows_at(1)[0].values
    noise = np.random.default_rng(1).normal(size=unsafe.shape) * 1e-3
    pairs = in_spans(pairs, unsafe, unsafe + noise, np.arange(50))
    choice = choose_layer(pairs, methods=("nearest",))
    assert abs(choice.candidates[0].auroc - 0.5) < 0.2


def test_spans_of_a_row_share_its_fold():
    """On noise, a row whose spans are alike would find itself again if one of them were held out alone."""
    draw = np.random.default_rng(2)
    sides = [np.repeat(draw.normal(size=(50, 16)), 3, axis=0) for _ in range(2)]
    unsafe, safe = (side + draw.normal(size=side.shape) * 1e-3 for side in sides)
    together = choose_layer(in_spans(references({1: 0.0}), unsafe, safe, np.repeat(np.arange(50), 3)), ("nearest",))
    apart = choose_layer(in_spans(references({1: 0.0}), unsafe, safe, np.arange(150)), ("nearest",))
    assert abs(together.candidates[0].auroc - 0.5) < 0.2 and apart.candidates[0].auroc > 0.95


def test_a_row_is_scored_by_its_largest_span_in_standardised_coordinates():
    draw = np.random.default_rng(3)
    counts = draw.integers(1, 4, size=30)
    owners = np.repeat(np.arange(30), counts)
    unsafe, safe = (draw.normal(size=(len(owners), 8)) * np.geomspace(1, 500, 8) + 300 for _ in range(2))
    unsafe[np.cumsum(counts) - 1, 0] += 3  # the last span of each row
    choice = choose_layer(in_spans(references({1: 0.0}, 30, 30), unsafe, safe, owners), ("larf",), seed=7)

    def units(vectors, both):
        placed = (vectors - both.mean(axis=0)) / both.std(axis=0)
        return placed / np.linalg.norm(placed, axis=1, keepdims=True)

    unsafe, safe = (side.astype(np.float32).astype(np.float64) for side in (unsafe, safe))
    folds, _ = _folds(30, 30, 5, 7)
    scores, labels = [], []
    for fold in range(5):
        kept = [side[np.isin(owners, np.flatnonzero(folds != fold))] for side in (unsafe, safe)]
        both = np.concatenate(kept)
        toward = units(kept[0], both).mean(axis=0) - units(kept[1], both).mean(axis=0)
        for row in np.flatnonzero(folds == fold):
            for label, side in ((1, unsafe), (0, safe)):
                scores.append((units(side[owners == row], both) @ toward).max() - (units(both, both) @ toward).mean())
                labels.append(label)
    assert choice.candidates[0].auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    assert 0.6 < choice.candidates[0].auroc < 0.99


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
