"""The controls, and the table of methods."""

import numpy as np
import pytest
from datasets import Dataset

from hf_safefilter.errors import OptionError
from hf_safefilter.scores import METHODS, make, method
from hf_safefilter.scores.controls import LengthScore, RandomScore


def test_length_counts_the_characters_of_the_answer():
    ds = Dataset.from_dict({"prompt": ["a" * 50, "b", "c"], "response": ["four", "", "naïve ☂"]})
    found = ds.map(LengthScore(), batched=True)["length_score"]
    np.testing.assert_array_equal(np.array(found, dtype=np.float32), [4, np.nan, 7])


def test_length_counts_all_that_a_trainer_learns():
    turns = [{"role": role, "content": role[0] * 5} for role in ("system", "user", "assistant", "user", "assistant")]
    aside = [*turns[:2], turns[2] | {"weight": 0}, *turns[3:]]
    thought = [*turns[:4], turns[4] | {"reasoning_content": "r" * 9}]
    found = LengthScore()({"messages": [turns, aside, thought]})["length_score"]
    # answers, and reasoning beside them, each on a line of its own
    assert found.tolist() == [5 + 1 + 5, 5, 5 + 1 + 5 + 1 + 9]


def test_random_depends_on_the_row_and_the_seed_alone(rows):
    first = np.array(rows.map(RandomScore(), batched=True)["random_score"], dtype=np.float32)
    readable = ~np.isnan(first)
    texts_only = rows.select_columns(["prompt", "response"]).map(RandomScore(), batched=True)["random_score"]
    np.testing.assert_array_equal(np.array(texts_only, dtype=np.float32)[readable], first[readable])
    other = np.array(rows.map(RandomScore(1), batched=True)["random_score"], dtype=np.float32)
    assert (other[readable] != first[readable]).all()


def test_random_is_uniform():
    drawn = RandomScore()({"row_id": [f"{n:032x}" for n in range(20_000)]})["random_score"]
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert np.square(counts - 1000).sum() / 1000 < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert len(np.unique(drawn)) > 19_900


def test_columns_are_part_of_the_step_in_any_order():
    one = LengthScore({"prompt": "q", "response": "a"})
    assert one == LengthScore({"response": "a", "prompt": "q"}) == LengthScore(**_options(one.record()))
    assert hash(one) == hash(LengthScore({"response": "a", "prompt": "q"}))


def _options(record):
    return {name: value for name, value in record.items() if name not in ("step", "algorithm")}


def test_the_seed_is_a_whole_number():
    with pytest.raises(OptionError, match=r"seed=0\.5"):
        RandomScore(0.5)


def test_methods_by_name(index, rows):
    with pytest.raises(OptionError, match="did you mean 'larf'"):
        method("lard")
    with pytest.raises(OptionError, match="no option 'tops'"):
        make("larf", references=index, layer=2, tops=3)
    with pytest.raises(OptionError, match="lacks the option 'layer'"):
        make("larf", references=index)
    with pytest.raises(OptionError, match="no option 'kk'"):
        make("saft", layer=2, rows=rows, kk=1)
    assert make("saft", layer=2, rows=rows, k=2, center=True).layer == 2
    assert all(method(name).__module__.startswith("hf_safefilter.scores.") for name in METHODS)
