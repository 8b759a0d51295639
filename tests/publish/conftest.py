"""A scored data set that needs no model: lengths are real, so that rows can be scored again from their text."""

import pytest
from datasets import Dataset

from hf_safefilter.decide.select import IsSafe
from hf_safefilter.scores.controls import LengthScore, RandomScore

WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps under a tree all afternoon".split()
SECRET = "xyzzy-the-dropped-text"


@pytest.fixture(scope="session")
def steps():
    return [RandomScore(), LengthScore()]


@pytest.fixture(scope="session")
def scored(steps):
    """60 rows of growing length; the last ten hold a word that must not be published."""
    rows = [
        {
            "prompt": f"Question {number}?",
            "response": " ".join(WORDS[: 1 + number % 17]) + (f" {SECRET}" * 20 if number >= 50 else ""),
            "category": ["easy", "<b>|hard|</b>", "{{ 7 * 7 }}"][number % 3],
            "likes": [number, number + 1],
        }
        for number in range(60)
    ]
    ds = Dataset.from_list(rows)
    for step in steps:
        ds = ds.map(step, batched=True)
    return ds


@pytest.fixture(scope="session")
def is_safe():
    return IsSafe("length_score", 200.0)
