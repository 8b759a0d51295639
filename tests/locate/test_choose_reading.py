"""The reading is chosen by the gap between the same request answered and refused, on references held out."""

from dataclasses import replace

import numpy as np
import pytest
from stand_in import OfPrompts, StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter import EmbedLayers, EnsembleScore, ProbeScore, ReferenceIndex, fit_ensemble, fit_probe
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.locate.choose_reading import Reading, _HeldOut, _steady, choose_reading, middle_layers
from hf_safefilter.toy.corpus import heldout_rows, reference_rows

FACTS = {"license": "mit", "source": "the tests"}


class Noisy(StandIn):
    """A stand-in in which layer 1 knows nothing, layer 2 a little, layer 3 all."""

    def vectors(self, rows):
        read, conversations = super().vectors(rows)
        draw = np.random.default_rng(len(conversations))
        for layer, noise in ((1, 400.0), (2, 20.0), (3, 1.0)):
            read.vectors[layer] += draw.normal(scale=noise, size=read.vectors[layer].shape).astype(np.float32)
        return read, conversations


@pytest.fixture(scope="module")
def index():
    return ReferenceIndex.build(unsafe_rows(40), safe_rows(40), Noisy((1, 2, 3)), **FACTS)


def test_the_layer_that_knows_most_is_chosen(index):
    choice = choose_reading(index)
    assert choice.layer == 3 and choice.layers == (3,) and choice.signal and choice.margin > 0
    gaps = {reading.layers: reading.gap for reading in choice.readings if reading.method == choice.method}
    assert gaps[(1,)] < gaps[(2,)] < gaps[(3,)]
    assert "no label" in choice.how and choice.to_json()["layer"] == 3
    assert [row["chosen"] for row in choice.shown()].count("yes") == 1


def test_the_gap_is_that_of_a_fit_without_the_fold_by_hand(index):
    """One fold, done again with scikit-learn."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    held = _HeldOut.of(index, 5, 0)
    scores = held.scores("probe", 3)
    out = held.folds[0] == 2
    unsafe, safe = (side.astype(np.float64) for side in index.vectors(3))
    train = [unsafe[~out], safe[held.folds[1] != 2]]
    both = np.concatenate(train)
    mean, deviation = both.mean(axis=0), both.std(axis=0)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=[0.5, 0.5])
    lda.fit((both - mean) / deviation, np.repeat([1, 0], list(map(len, train))))
    expected = lda.decision_function((unsafe[out] - mean) / deviation)
    found = scores[: len(unsafe)][out]
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-6)


def with_prompts(unsafe, safe, benign, layers=(2, 3), far=1.0):
    """References read at the end of the prompt too, where states lie `far` from each other."""
    keys = [key for layer in layers for key in (layer, f"{layer}_last_prompt")]
    embed = OfPrompts(keys)
    if far != 1:
        read = embed.vectors

        def noisy(rows):
            found, conversations = read(rows)
            for key in keys[1::2]:
                found.vectors[key] = far * found.vectors[key]
            return found, conversations

        embed.vectors = noisy
    return ReferenceIndex.build(unsafe, safe, embed, benign=benign, **FACTS)


BENIGN = [{"prompt": f"Tell me {n}", "response": f"The answer is {n}."} for n in range(20)]


def test_the_ensemble_is_tried_as_it_is_applied():
    """By a second route: fitted to the references without a fold, and applied to that fold as to rows."""
    unsafe, safe = unsafe_rows(40), safe_rows(37)
    held = _HeldOut.of(with_prompts(unsafe, safe, BENIGN, (2,)), 5, 0)
    scores = held.scores("ensemble", 2)
    inside = [own != 2 for own in held.folds]
    sides = [[row for row, of in zip(rows, kept, strict=True) if of]
             for rows, kept in ((unsafe, inside[0]), (safe, inside[1][:37]), (BENIGN, inside[1][37:]))]  # fmt: skip
    step = EnsembleScore(fit_ensemble(with_prompts(*sides, (2,)), 2))
    out = [row for row, of in zip([*unsafe, *safe, *BENIGN], np.concatenate(inside), strict=True) if not of]
    rows = {
        "emb_layer_2": [[vector_of(row["response"])] for row in out],
        "emb_layer_2_last_prompt": [[vector_of(row["prompt"], "2_last_prompt")] for row in out],
    }
    np.testing.assert_allclose(scores[~np.concatenate(inside)], step(rows)["ensemble_score"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "step"), [
    ("ensemble", lambda references: EnsembleScore(fit_ensemble(references, 3))),
    ("probe", lambda references: ProbeScore(fit_probe(references, 3))),
])  # fmt: skip
def test_rows_of_several_windows_are_tried_as_they_are_scored(method, step):
    """By a second route, as above, with the toy and windows of 8 tokens."""
    embed = EmbedLayers("toy", [3], position="mean,last_prompt", window=8)
    sides = [*reference_rows(30, 3), heldout_rows("benign", 12)]
    sides = [[{name: row[name] for name in ("prompt", "response")} for row in side] for side in sides]
    held = _HeldOut.of(ReferenceIndex.build(sides[0], sides[1], embed, benign=sides[2], **FACTS), 5, 0)
    inside = [held.folds[0] != 2, *np.split(held.folds[1] != 2, [len(sides[1])])]
    unsafe, safe, benign = ([row for row, of in zip(side, kept, strict=True) if of]
                            for side, kept in zip(sides, inside, strict=True))  # fmt: skip
    kept = np.concatenate(inside)
    out = [row for row, of in zip([row for side in sides for row in side], kept, strict=True) if not of]
    read = embed({name: [row[name] for row in out] for name in ("prompt", "response")})
    assert max(map(len, read["spans"])) > 1
    found = step(ReferenceIndex.build(unsafe, safe, embed, benign=benign, **FACTS))(read)[f"{method}_score"]
    # vectors of rows are stored in float16, those of references in float32
    np.testing.assert_allclose(held.scores(method, 3)[~kept], found, rtol=5e-3, atol=5e-3)


def test_the_widest_reading_that_nothing_beats_clearly_is_chosen():
    index = with_prompts(unsafe_rows(40), safe_rows(37), BENIGN)
    choice = choose_reading(index, ("nearest", "probe", "ensemble"))
    assert (choice.method, choice.layers) == ("ensemble", (2, 3))
    others = [one.gap for one in choice.readings if one.method != "ensemble" or len(one.layers) == 1]
    assert choice.margin == choice.best.gap - max(others)
    assert choice.layers_of("probe") == (2, 3) and len(choice.layers_of("nearest")) == 1
    single = [one.gap for one in choice.readings if one.method == "probe" and len(one.layers) == 1]
    together = next(one for one in choice.readings if one.method == "probe" and len(one.layers) == 2)
    ahead = replace(choice, readings=(*choice.readings, replace(together, layers=(3,), gap=max(single) + 1, low=0.0)))
    assert ahead.layers_of("probe") == (2, 3)  # the interval of one layer that is ahead holds what several have
    clear = replace(choice, readings=(*choice.readings, replace(together, layers=(3,), gap=99.0, low=98.0)))
    assert clear.layers_of("probe") == (3,)
    lost = with_prompts(unsafe_rows(40), safe_rows(37), BENIGN, far=60.0)  # no shift tells anything
    narrower = choose_reading(lost, ("nearest", "probe", "ensemble"))
    assert (narrower.method, narrower.layers) == ("probe", (2, 3))


@pytest.mark.parametrize(("low", "method"), [(3.0, "ensemble"), (4.5, "probe")])
def test_the_ensemble_goes_before_a_probe_that_is_not_clearly_better(low, method):
    probe = Reading("probe", (2, 3), 5.0, low, 7.0, 0.99)
    ensemble = Reading("ensemble", (2, 3), 4.0, 3.0, 5.0, 0.99)
    single = Reading("nearest", (3,), 3.9, 3.0, 5.0, 0.99)
    assert _steady([probe, ensemble, single]).method == method
    assert _steady([single]) is None


def test_the_ensemble_needs_the_end_of_the_prompt(index):
    with pytest.raises(DataError, match="end of the prompt") as error:
        choose_reading(index, ("ensemble",))
    assert "mean,last_prompt" in error.value.fix
    assert "ensemble" not in {reading.method for reading in choose_reading(index).readings}


def test_a_request_is_never_on_both_sides_of_a_split(index):
    held = _HeldOut.of(index, 5, 0)
    assert (held.folds[0] == held.folds[1]).all()  # row j of both sides is the same request here


def test_references_that_know_nothing_give_no_signal():
    class Deaf(Noisy):
        def vectors(self, rows):
            read, conversations = super().vectors(rows)
            read.vectors = {layer: read.vectors[1] for layer in read.vectors}
            return read, conversations

    index = ReferenceIndex.build(unsafe_rows(40), safe_rows(40), Deaf((1, 2, 3)), **FACTS)
    assert not choose_reading(index).signal


def test_the_toy_is_read_well():
    step = EmbedLayers("toy", [2, 3, 4, 5])
    index = ReferenceIndex.build(*reference_rows(60, 3), step, **FACTS)
    choice = choose_reading(index)
    assert choice.signal and choice.best.auroc > 0.95 and choice.best.low > 1


def test_what_makes_no_sense_is_said(index):
    with pytest.raises(OptionError, match="cannot be tried"):
        choose_reading(index, methods=("length",))
    with pytest.raises(DataError, match="too few"):
        choose_reading(index, folds=30)


def test_few_requests_and_few_refusals_are_not_made_up_for_by_other_rows():
    same = [[{**row, "prompt": f"Do {place % 4}"} for place, row in enumerate(rows)]
            for rows in (unsafe_rows(30), safe_rows(30))]  # fmt: skip
    with pytest.raises(DataError, match="answer 4 requests, too few for 5 folds of whole requests"):
        choose_reading(ReferenceIndex.build(*same, StandIn((2,)), **FACTS))
    benign = [{"prompt": f"Tell me {n}", "response": f"The answer is {n}."} for n in range(40)]
    few = ReferenceIndex.build(unsafe_rows(30), safe_rows(9), StandIn((2,)), benign=benign, **FACTS)
    with pytest.raises(DataError, match="30 unsafe and 9 refused references are too few for 5 folds") as error:
        choose_reading(few)
    assert "layer=12" in error.value.fix


@pytest.mark.parametrize(("blocks", "layers"), [(30, [12, 15, 18, 21, 24]), (6, [2, 3, 4, 5]), (1, [1])])
def test_the_middle_of_a_model(blocks, layers):
    assert middle_layers(blocks) == layers
