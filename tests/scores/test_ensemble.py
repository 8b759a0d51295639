"""The ensemble: probe and neighbours, of answers and of shifts, as a loop in float64 has them."""

import numpy as np
import pytest
from datasets import Dataset
from stand_in import OfPrompts, StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter import (
    EmbedLayers,
    EnsembleScore,
    LarfScore,
    NearestScore,
    ProbeScore,
    ReferenceIndex,
    ShiftScore,
    fit_ensemble,
    fit_probe,
    fit_saft,
)
from hf_safefilter.columns import answer_key, embedding_columns, prompt_key, shift_key, stored_keys
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.scores.probe.neighbourhood import (
    WIDEST,
    K,
    Neighbourhood,
    neighbourhood,
    scale_of,
    scores_among,
)
from hf_safefilter.toy.corpus import reference_rows

FACTS = {"license": "mit", "source": "the tests"}
LAYERS = (2, 3)
TEXTS = ["Sure, go on.", "Sorry, no.", "The sky is blue.", "Sure. Sorry."]


def benign_rows(count=14):
    return [{"prompt": f"Tell me {n}", "response": f"The answer is {n}."} for n in range(count)]


@pytest.fixture(scope="module")
def index():
    embed = OfPrompts([key for layer in LAYERS for key in (layer, prompt_key(layer))])
    unsafe = [*unsafe_rows(20), {"prompt": "Do harm number 3", "response": "Sure, once more."}]
    return ReferenceIndex.build(unsafe, safe_rows(15), embed, benign=benign_rows(), **FACTS)


def read(layer, texts=TEXTS, prompt="Ask."):
    return np.array([vector_of(text, layer) for text in texts]), np.array([vector_of(prompt, prompt_key(layer))])


def batch(texts=TEXTS, prompt="Ask."):
    """Rows of one span each."""
    columns = {}
    for layer in LAYERS:
        answers, (end,) = read(layer, texts, prompt)
        columns[f"emb_layer_{layer}"] = [[one] for one in answers]
        columns[f"emb_layer_{layer}_last_prompt"] = [[end] for _ in answers]
    return columns


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def neighbours_by_a_loop(index, layer, rows):
    """Mean of the five largest cosines to unsafe minus safe references, in deviations of the references."""
    sides = [side.astype(np.float64) for side in index.vectors(layer)]
    both = np.concatenate(sides)
    mean, deviation = both.mean(axis=0), both.std(axis=0)
    places = [unit((side - mean) / deviation) for side in sides]
    asked = [[row.conversation.messages[0].content for row in index.rows(side)] for side in ("unsafe", "safe")]

    def near(vector, without=None):
        means = []
        for side, prompts in zip(places, asked, strict=True):
            cosines = sorted(other @ vector for other, prompt in zip(side, prompts, strict=True) if prompt != without)
            means.append(np.mean(cosines[-K:]))
        return means[0] - means[1]

    own = [
        np.array([near(vector, prompt) for vector, prompt in zip(side, prompts, strict=True)])
        for side, prompts in zip(places, asked, strict=True)
    ]
    centre = (own[0].mean() + own[1].mean()) / 2
    spread = np.sqrt((((own[0] - centre) ** 2).mean() + ((own[1] - centre) ** 2).mean()) / 2)
    return (np.array([near(vector) for vector in unit((rows - mean) / deviation)]) - centre) / spread


def test_it_is_the_mean_of_probe_and_neighbours_as_a_loop_has_them(index):
    parts = []
    for layer in LAYERS:
        answers, end = read(layer)
        parts += [
            neighbours_by_a_loop(index, layer, answers),
            neighbours_by_a_loop(index, shift_key(layer), answers - end),
        ]
    probe = fit_ensemble(index, LAYERS)
    assert probe.layers == (2, 3, "2_shift", "3_shift")
    expected = (ProbeScore(probe)(batch())["probe_score"] + np.mean(parts, axis=0)) / 2
    np.testing.assert_allclose(EnsembleScore(probe)(batch())["ensemble_score"], expected, rtol=2e-5, atol=2e-5)


def test_the_probe_of_shifts_is_fitted_to_shifts(index):
    """Moving answer and prompt together leaves it as it is."""
    shifted = fit_ensemble(index, 2)
    only = shifted.directions[1], shifted._tensors["offsets"][1]
    answers, end = read(2)
    unsafe, safe = index.vectors("2_shift")
    np.testing.assert_array_equal(unsafe, index.vectors(2)[0] - index.vectors("2_last_prompt")[0])
    inside = [side.astype(np.float64) @ only[0] + only[1] for side in (unsafe, safe)]
    assert inside[0].mean() > 0 > inside[1].mean()
    scores = (answers - end) @ only[0] + only[1]
    np.testing.assert_allclose((answers + 7 - (end + 7)) @ only[0] + only[1], scores, rtol=1e-4, atol=1e-4)


def test_scores_of_shifts_are_any_scores_at_a_layer_that_is_called_so(index):
    answers, end = read(2)
    moved = {"emb_layer_2": [[one - end[0]] for one in answers]}
    plain = ReferenceIndex.build(unsafe_rows(20), safe_rows(15), _Shifted(index), benign=benign_rows(), **FACTS)
    for score in (LarfScore, NearestScore):
        for standardize in (True, False):
            step = score(index, "2_shift", standardize=standardize)
            assert step.needs() == ("emb_layer_2", "emb_layer_2_last_prompt")
            column = step.produces()[0]
            other = score(_without(index), "2_shift", standardize=standardize)
            np.testing.assert_allclose(
                other(batch())[column], score(plain, 2, standardize=standardize)(moved)[column], rtol=1e-4, atol=1e-5
            )


class _Shifted(StandIn):
    """Reads rows as the difference itself."""

    def __init__(self, index):
        super().__init__((2,))

    def vectors(self, rows):
        rows = list(rows)
        found, conversations = super().vectors(rows)
        ends = np.array([vector_of(row["prompt"], "2_last_prompt") for row in rows])
        found.vectors[2] = found.vectors[2] - ends
        return found, conversations


def _without(index):
    """The same references, without the one that is there twice."""
    embed = OfPrompts([2, "2_last_prompt"])
    return ReferenceIndex.build(unsafe_rows(20), safe_rows(15), embed, benign=benign_rows(), **FACTS)


def test_words_have_the_scores_of_the_probe(index):
    step = EnsembleScore(fit_ensemble(index, 2))
    vectors = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    np.testing.assert_array_equal(step.word_scores(vectors), ProbeScore(step.probe).span_scores(vectors))
    assert not np.allclose(step.word_scores(vectors), step.span_scores(vectors))


def test_labelled_rows_teach_it(index):
    rows = Dataset.from_dict(
        batch(["A strange one.", "An odd one.", "Another."]) | {"label": ["unsafe", "unsafe", "safe"]}
    )
    plain, taught = fit_ensemble(index, LAYERS), fit_ensemble(index, LAYERS, labeled=rows, weight=20)
    before, after = (EnsembleScore(probe)(rows[:])["ensemble_score"] for probe in (plain, taught))
    assert (np.diff([before[:2].mean(), after[:2].mean()]) > 0.2).all()


def test_names_of_shifts():
    assert (shift_key(2), answer_key("2_shift"), answer_key("norm_shift"), answer_key(2)) == ("2_shift", 2, "norm", 2)
    assert stored_keys("2_shift") == (2, "2_last_prompt")
    assert embedding_columns("2_shift") == ("emb_layer_2", "emb_layer_2_last_prompt")
    assert embedding_columns("norm") == ("emb_layer_norm",)


def test_what_is_missing_is_named(index):
    with pytest.raises(MissingError, match="end of the prompt") as error:
        fit_ensemble(ReferenceIndex.build(unsafe_rows(12), safe_rows(9), StandIn((2,)), **FACTS), 2)
    assert "mean,last_prompt" in error.value.fix
    step = EnsembleScore(fit_ensemble(index, 2))
    with pytest.raises(MissingError, match="emb_layer_2_last_prompt") as error:
        step({"emb_layer_2": [[vector_of("Sure.")]]})
    assert "last_prompt" in error.value.fix
    with pytest.raises(DataError, match="do not belong together"):
        step(batch() | {"emb_layer_2_last_prompt": [[], *batch()["emb_layer_2_last_prompt"][1:]]})
    with pytest.raises(OptionError, match="no layer"):
        fit_ensemble(index, [])


def test_a_probe_of_another_kind_is_refused(index):
    for layers in ((2, 3), (2, "3_shift"), ("2_shift", 2)):
        with pytest.raises(OptionError, match="not fitted for an ensemble"):
            EnsembleScore(fit_probe(index, layers))


def test_a_shift_of_a_shift_is_none(index):
    for bad in ("2_shift_shift", "2" + "_shift" * 3000):
        with pytest.raises(OptionError, match="shift of a shift"):
            fit_probe(index, [bad])
    for score in (lambda: ShiftScore(_without(index), "2_shift"), lambda: fit_ensemble(index, "2_shift")):
        with pytest.raises(OptionError, match="is a shift itself"):
            score()
    with pytest.raises(OptionError, match="without a shift"):
        fit_saft(Dataset.from_dict(batch()), "2_shift")


def test_small_numbers_are_subtracted_in_float32(index):
    step = NearestScore(index, "2_shift")
    rows = {name: [np.array(cell, np.float16) for cell in cells] for name, cells in batch().items()}
    wide = {name: [cell.astype(np.float32) for cell in cells] for name, cells in rows.items()}
    np.testing.assert_array_equal(step(rows)["nearest_score"], step(wide)["nearest_score"])
    far = {name: [np.full((1, 16), 60000 if name == "emb_layer_2" else -60000, np.float16)] for name in rows}
    assert np.isfinite(step(far)["nearest_score"]).all()


def test_windows_of_answer_and_prompt_must_be_of_the_same_rows(index):
    rows = {name: [cells[0] * 2, cells[1]] for name, cells in batch(TEXTS[:2]).items()}
    moved = rows | {"emb_layer_2_last_prompt": [rows["emb_layer_2_last_prompt"][1], rows["emb_layer_2_last_prompt"][0]]}
    step = EnsembleScore(fit_ensemble(index, 2))
    assert np.isfinite(step(rows)["ensemble_score"]).all()
    with pytest.raises(DataError, match="do not belong together"):
        step(moved)


def test_few_references_and_references_of_several_spans_have_neighbours():
    draw = np.random.default_rng(0)
    few = [draw.normal(size=(count, 8)).astype(np.float32) for count in (3, 2)]
    sides = [Ragged(side, np.arange(len(side) + 1)) for side in few]
    near = Neighbourhood.of(sides, [np.arange(3), np.arange(2)])
    assert np.isfinite(near.score(draw.normal(size=(5, 8)).astype(np.float32))).all()
    two_spans = [Ragged(few[0], np.array([0, 2, 3])), sides[1]]
    of_one = Neighbourhood.of(two_spans, [np.arange(2), np.arange(2)])  # two spans of one answer are no neighbours
    assert of_one.deviation != near.deviation and of_one.scaling.mean.tolist() == near.scaling.mean.tolist()
    wide = Ragged(draw.normal(size=(WIDEST + 1, 2)), np.arange(WIDEST + 2))
    many = Neighbourhood.of([wide, Ragged(few[1][:, :2], np.arange(3))], [np.arange(WIDEST + 1), np.arange(2)])
    assert many.indexes[0].ntotal == WIDEST


def test_each_span_of_a_reference_is_of_its_own_request():
    """References of several windows, read by the toy: their spans are told from those of other requests."""
    embed = EmbedLayers("toy", [3], position="mean,last_prompt", window=8)
    rows = [[{**row, "response": row["response"] * repeats} for row in side] for side, repeats in
            zip(reference_rows(8, 3), (3, 1), strict=True)]  # fmt: skip
    index = ReferenceIndex.build(*rows, embed, **FACTS)
    spans = [[row.spans for row in index.rows(side)] for side in ("unsafe", "safe")]
    assert max(spans[0]) > 2 and len(set(spans[0])) > 1
    numbers = [np.array([hash(row["prompt"]) for row in side]) for side in rows]
    offsets = [np.concatenate([[0], np.cumsum(counts)]) for counts in spans]
    for layer in (3, "3_shift"):
        sides = [Ragged(vectors, at) for vectors, at in zip(index.vectors(layer), offsets, strict=True)]
        stored, by_hand = neighbourhood(index.digest, layer), Neighbourhood.of(sides, numbers)
        assert (stored.mean, stored.deviation) == (by_hand.mean, by_hand.deviation)


def test_references_of_one_request_have_no_neighbours_of_others():
    ones = np.eye(4)
    with pytest.raises(DataError, match="single request"):
        scores_among([ones[:2], ones[2:]], [np.zeros(2, int), np.zeros(2, int)])
    with pytest.raises(DataError, match="same neighbours"):
        scale_of(scores_among([ones[:1].repeat(3, 0)] * 2, [np.arange(3), np.arange(3)]))
