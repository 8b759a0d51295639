"""The compliance shift: two positions of one row, the prompt taken away, one score an answer."""

import numpy as np
import pytest
from datasets import Dataset
from stand_in import StandIn, safe_rows, unsafe_rows, vector_of

from hf_safefilter import EmbedLayers, LarfScore, ReferenceIndex, ShiftScore
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

FACTS = {"license": "mit", "source": "the tests"}
BOTH = (2, "2_last_prompt")


@pytest.fixture(scope="module")
def index():
    benign = [{"prompt": f"Tell me {n}", "response": f"The answer is {n}."} for n in range(9)]
    return ReferenceIndex.build(unsafe_rows(12), safe_rows(9), StandIn(BOTH), benign=benign, **FACTS)


def direction(index):
    unsafe, safe = (side.astype(np.float64) for side in index.vectors(2))
    difference = unsafe.mean(axis=0) - safe[:9].mean(axis=0)  # without the ordinary rows behind them
    return difference / np.linalg.norm(difference)


def batch(answers, prompt="Ask."):
    return {
        "emb_layer_2": [[vector_of(text) for text in answers]],
        "emb_layer_2_last_prompt": [[vector_of(prompt)] * len(answers)],
    }


def test_the_score_is_the_projection_of_answer_minus_prompt(index):
    found = ShiftScore(index, 2)(batch(["Sure, a."]))["shift_score"][0]
    assert found == pytest.approx((vector_of("Sure, a.") - vector_of("Ask.")) @ direction(index), rel=1e-5)


def test_what_stands_in_prompt_and_answer_cancels_out(index):
    one = batch(["Sure, a."])
    moved = {name: [[vector + 7 for vector in cell] for cell in cells] for name, cells in one.items()}
    step = ShiftScore(index, 2)
    np.testing.assert_allclose(step(moved)["shift_score"], step(one)["shift_score"], rtol=1e-5)


def test_windows_of_an_answer_are_averaged_and_the_highest_answer_counts(index):
    answers = ["Sure, a.", "Sorry, b.", "Sorry, c."]
    rows = batch(answers) | {
        "spans": [[
            {"turn": 1, "rejected": False, "start": 0, "stop": 18},
            {"turn": 1, "rejected": False, "start": 18, "stop": 24},
            {"turn": 3, "rejected": False, "start": 30, "stop": 40},
        ]]
    }  # fmt: skip
    each = [(vector_of(text) - vector_of("Ask.")) @ direction(index) for text in answers]
    found = ShiftScore(index, 2)(rows)
    first = (18 * each[0] + 6 * each[1]) / 24
    np.testing.assert_allclose(found["shift_span_scores"][0], [first, first, each[2]], rtol=1e-5)
    assert found["shift_score"][0] == pytest.approx(max(first, each[2]), rel=1e-5)


def test_a_coordinate_that_does_not_vary_does_not_rule_the_others():
    """The means of equal numbers differ in their last digit, which a deviation of 0 must not blow up."""

    def constant(vectors):
        return np.where(np.arange(vectors.shape[1]) == 5, np.float32(0.1234567), vectors).astype(np.float32)

    index = ReferenceIndex.build(unsafe_rows(37), safe_rows(29), StandIn(BOTH, change=constant), **FACTS)
    step, row = ShiftScore(index, 2, standardize=True), batch(["Sure, a."])
    moved = row | {"emb_layer_2": [[vectors + np.eye(1, len(vectors), 5)[0] for vectors in row["emb_layer_2"][0]]]}
    assert abs(step(moved)["shift_score"][0] - step(row)["shift_score"][0]) < 1e-3


def test_standardised_coordinates_weigh_each_axis_alike(index):
    unsafe, safe = (side.astype(np.float64) for side in index.vectors(2))
    deviation = np.concatenate([unsafe, safe[:9]]).std(axis=0)
    difference = (unsafe.mean(axis=0) - safe[:9].mean(axis=0)) / deviation
    shift = (vector_of("Sure, a.") - vector_of("Ask.")) / deviation
    found = ShiftScore(index, 2, standardize=True)(batch(["Sure, a."]))["shift_score"][0]
    assert found == pytest.approx(shift @ difference / np.linalg.norm(difference), rel=1e-5)


def test_both_positions_are_needed(index):
    alone = ReferenceIndex.build(unsafe_rows(12), safe_rows(9), StandIn((2,)), **FACTS)
    with pytest.raises(MissingError, match="end of the prompt") as error:
        ShiftScore(alone, 2)
    assert "mean,last_prompt" in error.value.fix
    with pytest.raises(MissingError, match="emb_layer_2_last_prompt"):
        ShiftScore(index, 2)({"emb_layer_2": [[vector_of("Sure.")]]})
    with pytest.raises(DataError, match="belong together"):
        ShiftScore(index, 2)(batch(["a", "b"]) | {"emb_layer_2_last_prompt": [[vector_of("Ask.")]]})


def test_one_pass_of_the_model_serves_both_dangers():
    step = EmbedLayers("toy", [3], position="mean,last_prompt")
    index = ReferenceIndex.build(*reference_rows(60, 3), step, **FACTS)
    rows = Dataset.from_list(mixed_rows(60, 0.3, 1)).map(step, batched=True)
    rows = rows.map(LarfScore(index, 3), batched=True).map(ShiftScore(index, 3), batched=True)
    unsafe = np.array([label == "unsafe" for label in rows["label"]])
    shift = np.array(rows["shift_score"])
    assert np.isfinite(shift).all() and shift[unsafe].mean() > shift[~unsafe].mean()
