"""The plots of the pages: drawn by the benchmarks, with named axes and scales, and every kind of mark in a legend."""

from types import SimpleNamespace

import pytest
from svg_texts import texts_of

from benchmarks import detect
from benchmarks.__main__ import Line, plot
from hf_safefilter.decide.verdict.rank_statistics import Interval


@pytest.mark.filterwarnings("error")
def test_the_plot_of_speed_names_its_scales_and_its_numbers(tmp_path):
    lines = [Line("a", "b", ratio=20.0), Line("c", "d", ratio=0.5, share=0.25)]
    memory = {"sizes": [1_000, 10_000], "memory": {name: [2.0**20, 2.0**21] for name in ("larf", "nearest", "split")}}
    for given in (memory, None):
        plot(lines, given, tmp_path / "plot")
        shown = set(texts_of(tmp_path / "plot.svg"))
        assert {"times as fast (log scale; 1: alike)", "share of the machine's limit", "rows (log scale)"} <= shown
        assert {"a", "against b", "20", "0.5", "25%"} <= shown
        assert {"larf", "nearest", "split", "10,000"} <= shown or given is None


@pytest.mark.filterwarnings("error")
def test_the_plot_of_detection_tells_methods_from_controls_and_chance(tmp_path):
    verdict = SimpleNamespace(auroc=Interval(0.4, 0.1, 0.6))
    file = {"probe": verdict, "length": verdict}
    for name in ("one", "two"):
        detect.draw({"one": file, "a very long name of a file that has rows": file}, tmp_path / f"{name}.png")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    shown = set(texts_of(tmp_path / "one.svg"))
    assert {
        "AUROC, 95 % interval",
        "methods",
        "what needs no model",
        "chance",
        "a very long name of a file that h…",
    } <= shown
