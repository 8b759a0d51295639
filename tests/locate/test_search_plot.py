"""What the plot of a search says: its axes, its marks, and the verdict in full."""

import pytest
from svg_texts import texts_of

from hf_safefilter import SafetyLayers
from hf_safefilter.locate.search_plot import write_plot

GAPS = tuple({"block": block, "gap": 4.0 - block} for block in range(6))
SCALED = tuple({"block": block, "score": 0.1, "low": 0.0, "high": 0.3} for block in range(6))
RANGES = tuple({"first": 1, "last": last, "alpha": 1.2, "refusals": last} for last in range(1, 6))
LONG = "the best range may differ from the unscaled model, or from the other ranges, by chance (p = 1.00)"


def shown(tmp_path, method, table, found=(1, 2), why="", **facts):
    write_plot(SafetyLayers(method, *found, why, table, facts=facts), tmp_path / "locate")
    return texts_of(tmp_path / "locate.svg")


def test_the_plot_of_a_gap_names_what_is_drawn(tmp_path):
    texts = shown(tmp_path, "gap", GAPS, chance=0.0025)
    assert {"angular gap (degrees)", "block (its output is layer block + 1)", "blocks found"} <= set(texts)
    assert "gap between normal and malicious prompts" in texts
    assert "Found: blocks 1 to 2 (as clear by chance with p = 0.0025)" in texts


def test_the_plot_of_a_scaling_states_its_interval(tmp_path):
    texts = shown(tmp_path, "scaling", SCALED, (2, 2), options={"level": 0.1})
    assert "mean and 90 % interval over prompts" in texts and "Found: block 2" in texts


def test_the_plot_of_bounds_names_both_kinds_of_bars_and_the_line(tmp_path):
    texts = shown(tmp_path, "bounds", RANGES, (1, 3), alpha=1.2, unscaled={"refusal": 4})
    assert {"prompts refused", "blocks scaled by 1.2", "blocks found", "unscaled model", "1-3"} <= set(texts)
    assert "pattern" in (tmp_path / "locate.svg").read_text()  # the range found is striped


@pytest.mark.parametrize("method", ["gap", "bounds"])
def test_a_long_verdict_is_not_cut_off(tmp_path, method):
    texts = shown(tmp_path, method, {"gap": GAPS, "bounds": RANGES}[method], (None, None), LONG)
    lines = [text for text in texts if text.startswith("No signal") or text.startswith("by chance")]
    assert " ".join(lines) == f"No signal: {LONG}" and len(lines) > 1
    assert "blocks found" not in texts


def test_bounds_that_had_no_range_to_start_from_show_the_gap(tmp_path):
    texts = shown(tmp_path, "bounds", (), (None, None), "no range to start from", gap={"table": GAPS})
    assert "angular gap (degrees)" in texts and "prompts refused" not in texts


def test_what_was_not_found_is_not_named():
    assert SafetyLayers("gap", None, None, "no gap", ()).how.endswith(": no signal")
    assert SafetyLayers("gap", 1, 2, "", ()).how.endswith(": blocks 1 to 2")
