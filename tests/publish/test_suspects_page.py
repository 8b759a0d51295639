"""The histogram of the page of suspects: axes, a legend, a description, and no bar of both sides."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from hf_safefilter.publish.suspects_page import page

BAR = re.compile(r'fill="(url\(#stripes\)|#0072b2)"><title>(\S+) to (\S+): ([\d,]+) rows<')


def drawn(scores, threshold, column="probe_score"):
    return page([], np.array(scores), SimpleNamespace(column=column, threshold=threshold, rule="by hand"))


def test_the_histogram_names_its_axes_its_scale_and_its_sides():
    shown = drawn(np.arange(60.0), 50.0)
    assert "rows (square-root scale)" in shown and "score, higher = more dangerous" in shown
    assert "Histogram of probe_score: 50 rows below the threshold 50, 10 at it or above</title>" in shown
    assert "50 below the threshold" in shown and "10 at it or above" in shown and "threshold 50<" in shown
    assert all(f">{value}</text>" in shown for value in (0, 20, 40))


def test_no_bar_holds_rows_of_both_sides():
    scores = np.random.default_rng(0).normal(size=900)
    bars = BAR.findall(drawn(scores, 0.123))
    dropped = sum(int(count) for fill, _, _, count in bars if fill != "#0072b2")
    assert dropped == (scores >= 0.123).sum() and sum(int(count) for *_, count in bars) == 900


def test_scores_that_hardly_differ_have_ticks_that_do():
    shown = drawn(1000 + np.arange(60) * 1e-9, 1000 + 50e-9)
    ticks = re.findall(r'text-anchor="middle">([\d.]+)<', shown)
    assert len(set(ticks)) == len(ticks) >= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([], 0.5), ([np.nan], 0.5), ([0.3], 0.5), ([0.7] * 9, 0.7), ([0.0, 1e30], 0.5), ([1.0, 1 - 1.2e-16], 1.0),
     ([0.0, 1.0], np.inf)],
)  # fmt: skip
def test_odd_scores_are_drawn(scores, threshold):
    assert sum(int(count) for *_, count in BAR.findall(drawn(scores, threshold))) == np.isfinite(scores).sum()


def test_a_hostile_column_stays_text():
    assert "<img" not in drawn([0.0, 1.0], 0.5, column="<img src=x onerror=alert(1)>")
