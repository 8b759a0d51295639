"""Rows that are references too are named, and not measured on."""

import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from stand_in import StandIn, safe_rows, unsafe_rows

from hf_safefilter.decide.overlap import apart_from_references, warn_of_overlap
from hf_safefilter.errors import DataError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.scores.larf import LarfScore
from hf_safefilter.scores.probe import ProbeScore, fit_probe


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    return ReferenceIndex.build(unsafe_rows(), safe_rows(), StandIn(), license="mit", source="the tests")


@pytest.fixture
def rows(index):
    ids = [index.rows("unsafe")[3].row_id, "a", index.rows("safe")[0].row_id, "b", index.rows("safe")[1].row_id]
    return Dataset.from_dict({"row_id": ids, "larf_score": np.arange(5.0)})


@pytest.mark.parametrize("kind", [LarfScore, ProbeScore])
def test_they_are_named_and_left_out(index, rows, kind, caplog):
    step = LarfScore(index, 2) if kind is LarfScore else ProbeScore(fit_probe(index, 2))
    with caplog.at_level(logging.WARNING, "hf_safefilter"):
        warn_of_overlap(rows, [LengthScore(), step])
    assert "3 of 5 rows are references too, 1 among the unsafe ones and 2 among the safe ones" in caplog.text
    assert apart_from_references(rows, [step])["row_id"][:] == ["a", "b"]


def test_splits_stay_splits_and_one_of_references_alone_is_gone(index, rows):
    parts = DatasetDict(one=rows.select([0, 1]), two=rows.select([2]), three=rows.select([3]))
    found = apart_from_references(parts, [LarfScore(index, 2)])
    assert {name: part["row_id"][:] for name, part in found.items()} == {"one": ["a"], "three": ["b"]}


def test_rows_of_their_own_are_left_as_they_are(index, rows, caplog):
    step, others = LarfScore(index, 2), rows.select([1, 3])
    assert apart_from_references(others, [step]) is others
    assert apart_from_references(rows, [LengthScore()]) is rows
    assert apart_from_references(rows.remove_columns("row_id"), [step]).num_rows == 5
    warn_of_overlap(others, [step])
    assert not caplog.text


def test_references_alone_measure_nothing(index, rows):
    with pytest.raises(DataError, match="all rows are references too") as error:
        apart_from_references(rows.select([0, 2]), [LarfScore(index, 2)])
    assert "hf-safefilter reference build" in error.value.fix
