"""Values of every host as Python's own."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from hf_safefilter.data.plain import as_turns, column_cells, plain


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", "a"),
        (np.str_("a"), "a"),
        (True, True),
        (np.bool_(True), True),
        (5, 5),
        (np.int64(5), 5),
        (2.5, 2.5),
        (np.float32(2.5), 2.5),
        (None, None),
        (float("nan"), None),
        (np.float64("nan"), None),
        (pd.NA, None),
        (pd.NaT, None),
        (b"a", b"a"),
        (np.array(5), 5),
        (np.array("a"), "a"),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([np.array(["a"], dtype=object), {"b": np.int64(1)}], dtype=object), [["a"], {"b": 1}]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(1.5), 1.5),
        (pd.Series(["a", None]), ["a", None]),
        (pa.scalar("a"), "a"),
        ((1, (2, [3])), [1, [2, [3]]]),
        ({np.str_("a"): {"b": np.array([1])}}, {"a": {"b": [1]}}),
    ],
)
def test_values_become_pythons_own(given, expected):
    found = plain(given)
    assert found == expected and type(found) is type(expected)


def test_what_is_none_of_these_stays():
    thing = object()
    assert plain(thing) is thing and plain([thing]) == [thing]


@pytest.mark.parametrize(
    "column",
    [
        ["a", None],
        ("a", None),
        np.array(["a", None], dtype=object),
        pd.Series(["a", None]),
        pa.array(["a", None]),
        pa.chunked_array([["a"], [None]]),
    ],
)
def test_a_column_is_one_cell_a_row(column):
    assert column_cells(column) == ["a", None]


def test_turns_that_are_a_struct_of_lists():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert as_turns({"role": ["user", "assistant"], "content": ["a", "b"]}) == turns
    for other in (turns, turns[0], {}, {"role": ["user"], "content": ["a", "b"]}, {"role": "user", "content": ["a"]}):
        assert as_turns(other) == other
