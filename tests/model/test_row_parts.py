"""A bar counts the rows of a long call: on a terminal, in one process alone, and never past the end."""

import numpy as np
import pytest

from hf_safefilter import EmbedLayers
from hf_safefilter.data.batch import Batch
from hf_safefilter.toy.corpus import mixed_rows


class Bar:
    """What a bar is told."""

    made = []

    def __init__(self, **options):
        self.options, self.n, self.steps = options, 0, []
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count):
        self.n += count
        self.steps.append(count)


@pytest.fixture
def bars(monkeypatch):
    Bar.made = []
    monkeypatch.setattr("datasets.utils.tqdm", Bar)
    monkeypatch.setattr("hf_safefilter.model.row_parts.TOKENISED_AT_ONCE", 7)
    monkeypatch.setattr("hf_safefilter.model.budget.token_budget", lambda *_: 128)
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "off")
    return Bar.made


def batch(count):
    rows = [{name: row[name] for name in ("prompt", "response")} for row in mixed_rows(count, 0.3, 4)]
    return Batch({name: [row[name] for row in rows] for name in rows[0]})


def test_it_counts_the_rows_as_they_are_read(bars):
    found = EmbedLayers("toy", [3]).compute(batch(24), None)
    (bar,) = bars
    assert len(found["row_id"]) == 24 and bar.options["total"] == 24 == bar.n
    assert min(bar.steps) >= 0 and sum(step > 0 for step in bar.steps) > 4  # more often than once a part
    assert bar.options["disable"] is None and bar.options["delay"] > 0  # not in a log, and not for a short call


def test_one_of_several_processes_draws_none(bars):
    EmbedLayers("toy", [3]).compute(batch(9), 0)
    (bar,) = bars
    assert bar.options["disable"] is True


def test_rows_that_cannot_be_read_are_counted_too(bars):
    rows = {"prompt": ["a", "b", "c"], "response": ["", "one", ""]}
    found = EmbedLayers("toy", [3]).compute(Batch(rows), None)
    assert list(map(bool, found["unscorable"])) == [True, False, True]
    assert bars[0].n <= 3
    none = EmbedLayers("toy", [3]).compute(Batch({"prompt": ["a"], "response": [""]}), None)
    assert np.asarray(none["unscorable"]).tolist() == ["empty_response"]
