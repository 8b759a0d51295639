"""Which model wrote the rows: stated, or said to be unknown; a warning where it is the model to be tuned."""

import logging

import pytest
from datasets import Dataset

from hf_safefilter import EmbedLayers
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.publish.card import render
from hf_safefilter.publish.gather import gather
from hf_safefilter.scores.controls import LengthScore

FACTS = {"license": "mit", "source": "a test", "anyway": True}


@pytest.fixture(scope="module")
def read():
    steps = [EmbedLayers("toy", [1]), LengthScore()]
    rows = Dataset.from_list([{"prompt": f"{n}?", "response": "word " * n} for n in range(1, 9)])
    return score_rows(embed_rows(rows, steps[0]), steps[1]), steps


@pytest.mark.parametrize(
    ("written_by", "said", "warned"),
    [
        (None, "not stated; rows that a model wrote can carry traits", False),
        ("people", "**Written by:** people\n", False),
        ("other/model", "**Written by:** other/model\n", False),
        ("us/TOY", "us/TOY, the model that is to be tuned", True),
        ("<b>toy</b>", "&lt;b&gt;", False),
    ],
)
def test_the_card_says_who_wrote_the_rows(read, written_by, said, warned, caplog):
    scored, steps = read
    with caplog.at_level(logging.WARNING, "hf_safefilter"):
        provenance = gather(scored, IsSafe("length_score", 30.0), steps=steps, generator_model=written_by, **FACTS)
    assert said in render(provenance, None)
    assert ("the model that is to be tuned wrote these rows" in caplog.text) is warned


def test_where_no_model_is_read_there_is_no_warning(scored, steps, is_safe):
    provenance = gather(scored, is_safe, steps=steps, generator_model="toy", **FACTS)
    assert provenance.model is None and not provenance.written_by_its_own_model()
