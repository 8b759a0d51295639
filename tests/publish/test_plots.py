"""What the plots of a folder say, read from the texts of the SVG, and data that no plot should trip over."""

import numpy as np
import pytest
from svg_texts import texts_of

from hf_safefilter.decide.verdict import verdict_from_labels
from hf_safefilter.publish.gather import gather
from hf_safefilter.publish.plots import write_plots
from hf_safefilter.publish.provenance import Review, Share


@pytest.fixture(scope="module")
def record(scored, is_safe, steps):
    return gather(scored, is_safe, license="mit", source="a barn", steps=steps)


def drawn(folder, scores, record, plot="scores"):
    write_plots(folder, scores, record)
    return texts_of(folder / "plots" / f"{plot}.svg")


def moved(record, threshold, **changed):
    return record.model_copy(
        update={"selection": record.selection.model_copy(update={"threshold": threshold, **changed})}
    )


def test_the_scores_have_named_axes_sides_and_a_scale(record, tmp_path):
    shown = drawn(tmp_path, np.arange(60.0), moved(record, 50.0))
    assert "length_score: higher = more dangerous to alignment" in shown
    assert "rows (above 10: log scale)" in shown
    assert {"kept: 50 below the threshold", "dropped: 10 at it or above", "threshold 50"} <= set(shown)
    assert (tmp_path / "plots" / "scores.svg").read_text().count("pattern") > 1  # what is dropped is striped


def test_few_rows_are_counted_one_by_one(record, tmp_path):
    shown = drawn(tmp_path, np.r_[np.zeros(6), 0.5], moved(record, 0.4))
    assert {str(number) for number in range(7)} <= set(shown) and "8" not in shown


def test_the_verdict_stands_on_the_plot(record, tmp_path):
    scores = np.r_[np.zeros(40), np.linspace(-1, 2, 20)]
    verdict = verdict_from_labels("probe_score", scores, np.arange(60) >= 40, np.ones(60))
    shown = "\n".join(drawn(tmp_path, scores, record.model_copy(update={"verdict": verdict.to_json()})))
    assert f"verdict: {verdict.finding}, AUROC {verdict.auroc.value:.2f} ({verdict.auroc.low:.2f} to" in shown
    assert "length alone 0.50, chance 0.50" in shown
    assert "verdict" not in "\n".join(drawn(tmp_path, scores, record.model_copy(update={"verdict": None})))


def test_a_side_is_not_called_kept_where_it_is_not(record, tmp_path):
    """People kept rows above the threshold, or what lies above it was masked and not dropped."""
    people = Review(sha256="", decided=3, kept=3, unscored=0, dropped=0, masked=0, reviewers=1, names=[], rows=0,
                    agreed=0, alpha=None)  # fmt: skip
    for other in (record.model_copy(update={"review": people}), moved(record, 200.0, action="mask")):
        shown = drawn(tmp_path, np.arange(60.0), moved(other, 50.0))
        assert "50 below the threshold" in shown and "10 at it or above" in shown


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([0.3], 0.5), ([0.7] * 300, 0.7), ([1.0, 1 - 1.2e-16, 1.0], 1.0), ([np.nan] * 9, 1.0), ([0.0, 1.0], np.inf),
        ([np.nan] * 9, np.inf), ([0.0, 1e30], 0.5), ([1e-300, 2e-300], 1e-300), ([-1e17, -1e17], -1e17),
    ],
)  # fmt: skip
def test_odd_scores_are_drawn(record, tmp_path, scores, threshold):
    shown = drawn(tmp_path, np.array(scores), moved(record, threshold))
    below = np.sum(np.array(scores) < threshold)
    assert any(text.endswith(f"{below} below the threshold") for text in shown)
    missing = int(np.isnan(scores).sum())
    assert any(f"{missing} not scored" in text for text in shown) == bool(missing)


@pytest.mark.filterwarnings("error")
def test_names_of_categories_are_cut_and_never_read_as_markup(record, tmp_path):
    names = {"a very long name " * 9: 1, "$\\frac{1}{0}$": 2, "<b>bold</b>": 3, "\u6f22\u5b57": 4, "": 0}
    counts = record.counts.model_copy(
        update={"by_category": {name: Share(rows=2_000, dropped=dropped) for name, dropped in names.items()}}
    )
    shown = drawn(tmp_path, np.arange(60.0), record.model_copy(update={"counts": counts}), "shares")
    assert "a very long name a very long name a very…"[:39] + "…" in shown
    assert "line 4 of the table" in shown and "(none)" in shown  # the font has no Chinese letters
    assert {"category", "dropped, % of the rows of each bar", "4 of 2,000", "all rows: 16.7 %"} <= set(shown)
    assert "<b>" not in (tmp_path / "plots" / "shares.svg").read_text()


def test_the_same_input_gives_the_same_bytes(record, tmp_path):
    for name in ("one", "two"):
        write_plots(tmp_path / name, np.arange(60.0), record)
    for path in (tmp_path / "one" / "plots").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "plots" / path.name).read_bytes()
