"""Scores that read a model themselves, over the row cache: the same columns, and no row scored twice."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scores" / "guard"))
from guards import save_guard

from hf_safefilter import cache
from hf_safefilter.cache import SWITCH
from hf_safefilter.cache import store as stores
from hf_safefilter.cache.upkeep import spaces_in_use
from hf_safefilter.errors import SafefilterError
from hf_safefilter.scores.gradient import GradientScore, fit_gradient
from hf_safefilter.scores.gradient.anchor import GradientAnchor
from hf_safefilter.scores.guard import GuardScore
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

TEXTS = [{"prompt": row["prompt"], "response": row["response"]} for row in mixed_rows(70, 0.2, 7)]
ODD = [{"prompt": "Ask", "response": ""}, {"prompt": "Ask", "response": 3}, TEXTS[4]]


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.fixture(scope="module")
def anchor():
    unsafe, safe = reference_rows(8, 1)
    return fit_gradient("toy", unsafe, safe, device="cpu")


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return save_guard(tmp_path_factory.mktemp("guard"), "llama_guard_3")


@pytest.fixture(params=["gradient", "guard"])
def case(request, monkeypatch):
    """A step, and the numbers of rows that reach its model."""
    scored = []
    if request.param == "gradient":
        step, whole = GradientScore(request.getfixturevalue("anchor"), device="cpu"), GradientAnchor.score
        monkeypatch.setattr(
            GradientAnchor, "score", lambda self, rows, device: scored.append(len(rows)) or whole(self, rows, device)
        )
        return step, scored
    step, whole = GuardScore(str(request.getfixturevalue("guard")), device="cpu"), GuardScore._judge
    monkeypatch.setattr(
        GuardScore, "_judge", lambda self, rows, device: scored.append(len(rows)) or whole(self, rows, device)
    )
    return step, scored


def same(found, expected):
    for name, values in expected.items():
        if values.dtype == object:
            assert found[name].tolist() == values.tolist()
        else:
            assert found[name].dtype == values.dtype == (np.int32 if name == "guard_turn" else np.float32)
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6)


def test_scores_are_those_of_a_run_without_it_and_none_is_computed_twice(case, store, monkeypatch):
    step, scored = case
    rows = [*TEXTS, *ODD, *TEXTS[:3]]
    monkeypatch.setenv(SWITCH, "off")
    expected = step(columns(rows))
    monkeypatch.setenv(SWITCH, "on")
    scored.clear()
    same(step(columns(rows)), expected)
    assert sum(scored) == len({(row["prompt"], row["response"]) for row in TEXTS}), "each distinct readable row once"
    cache.flush()
    stores._open.clear()  # as another process finds it
    scored.clear()
    again = step(columns([*rows[::-1], {"prompt": "What is new?", "response": "This row is."}]))
    same({name: values[:-1][::-1] for name, values in again.items()}, expected)
    assert sum(scored) == 1
    assert [one.layers for one in spaces_in_use()] == [("score",)]


def test_other_references_or_options_share_no_scores(case, store, monkeypatch):
    step, scored = case
    if isinstance(step, GradientScore):
        unsafe, safe = reference_rows(8, 2)
        other = GradientScore(fit_gradient("toy", unsafe, safe, device="cpu"), device="cpu")
    else:
        other = GuardScore(step.model, device="cpu", max_length=400)
    monkeypatch.setenv(SWITCH, "off")
    expected = other(columns(TEXTS))
    monkeypatch.setenv(SWITCH, "on")
    step(columns(TEXTS))
    scored.clear()
    same(other(columns(TEXTS)), expected)
    assert sum(scored) == len({(row["prompt"], row["response"]) for row in TEXTS})


def test_what_was_scored_before_an_error_is_kept(case, store, monkeypatch):
    step, scored = case
    monkeypatch.setattr("hf_safefilter.cache.store.SECONDS", 0.0)
    monkeypatch.setattr("hf_safefilter.cache.pace._LEAST", 8)
    monkeypatch.setattr("hf_safefilter.cache.pace.Pace.__init__", lambda self, seconds: self.__dict__.update(
        _seconds=0.0, _rate=0.0))  # fmt: skip
    cache.lookup._pace.cache_clear()
    owner, name = (GradientAnchor, "score") if isinstance(step, GradientScore) else (GuardScore, "_judge")
    whole = getattr(owner, name)

    def dies(self, rows, device):
        if sum(scored) >= 40:
            raise SafefilterError("the machine goes down")
        return whole(self, rows, device)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(SafefilterError, match="goes down"):
            step(columns(TEXTS))
    before = sum(scored)
    assert before >= 40
    stores._open.clear()
    scored.clear()
    step(columns(TEXTS))
    distinct = len({(row["prompt"], row["response"]) for row in TEXTS})
    assert sum(scored) == distinct - before
    cache.lookup._pace.cache_clear()


def test_a_row_that_is_too_long_says_so_again_when_it_is_recalled(guard, store, monkeypatch, caplog):
    step = GuardScore(str(guard), device="cpu", max_length=400)
    rows = [{"prompt": row["prompt"], "response": row["response"] * 100} for row in TEXTS[:2]]
    judged, judge = [], GuardScore._judge
    monkeypatch.setattr(
        GuardScore, "_judge", lambda self, rows, device: judged.append(len(rows)) or judge(self, rows, device)
    )
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = step(columns(rows))
        assert "2 rows have no guard score: too_long" in caplog.text
        assert found["guard_unscored"].tolist() == ["too_long"] * 2 and np.isnan(found["guard_score"]).all()
        assert found["guard_turn"].tolist() == [-1, -1]
    assert sum(judged) == 2
