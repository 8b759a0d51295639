"""Methods side by side: the figures by a second route, one reading for all, and reasons for what is left out."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from svg_texts import texts_of

from hf_safefilter import EmbedLayers, ReferenceIndex, compare_methods, demo
from hf_safefilter.compare import compare_methods as compare
from hf_safefilter.compare.comparison import draw
from hf_safefilter.decide.verdict import Finding, Verdict
from hf_safefilter.decide.verdict.rank_statistics import Interval
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.recipe import MethodChoice
from hf_safefilter.scores import make_score
from hf_safefilter.toy.corpus import mixed_rows, reference_rows


@pytest.fixture(scope="module")
def rows() -> Dataset:
    every = demo.mixed_rows()
    unsafe = [row for row in every if row["label"] == "unsafe"][:20]
    return Dataset.from_list([*unsafe, *[row for row in every if row["label"] == "safe"][:100]])


@pytest.fixture(scope="module")
def references() -> ReferenceIndex:
    sides = reference_rows(40, 3)
    return ReferenceIndex.build(*sides, EmbedLayers("toy", [3, 5, 6]), license="cc0-1.0", source="a test")


@pytest.fixture(scope="module")
def found(rows, references):
    methods = ["larf", MethodChoice(name="nearest", options={"k": 3}), "saft", "rank_average"]
    return compare_methods(rows, methods, EmbedLayers("toy", [3, 5, 6]), references, label="label", cost_rows=32)


def test_every_score_is_there_and_the_controls_stand_last(found):
    assert [one.method for one in found.entries] == ["larf", "nearest", "saft", "rank_average", "length", "random"]
    assert (found.rows, found.labelled, found.unsafe, dict(found.skipped)) == (120, 120, 20, {})
    assert {f"{one.method}_score" for one in found.entries} <= set(found.scored.column_names)


def test_the_figures_are_those_of_the_columns(found, rows):
    unsafe = np.array([label == "unsafe" for label in rows["label"]])
    for one in found.entries:
        scores = np.array(found.scored[one.column])
        assert one.separation.auroc == pytest.approx(roc_auc_score(unsafe, scores), abs=1e-12)
        assert one.scored == np.isfinite(scores).sum()
        for other in found.entries:
            ranks = [rankdata(np.array(found.scored[column])) for column in (one.column, other.column)]
            expected = np.corrcoef(*ranks)[0, 1]  # Spearman is Pearson on ranks
            assert found.agreement[one.column][other.column] == pytest.approx(expected, abs=1e-9)
    by_name = {one.method: one for one in found.entries}
    assert by_name["larf"].separation.auroc > 0.95
    assert by_name["larf"].verdict.finding == "beats length"
    assert by_name["length"].verdict.finding == by_name["random"].verdict.finding == "control"
    assert by_name["length"].length_rho == pytest.approx(1.0)


def test_the_scores_are_those_of_the_ordinary_steps(found, rows, references):
    layer = next(one.layer for one in found.entries if one.method == "nearest")
    embedded = embed_rows(rows, EmbedLayers("toy", [layer]))
    step = make_score("nearest", {"k": 3}, references=references, layer=layer, rows=embedded)
    alone = score_rows(embedded, step)
    assert np.allclose(alone["nearest_score"], found.scored["nearest_score"], atol=1e-3)


def test_one_reading_serves_all_methods(rows, references, monkeypatch):
    read = []

    def counted(ds, embed):
        read.append(embed.layers)
        return embed_rows(ds, embed)

    monkeypatch.setattr(compare, "embed_rows", counted)
    options = [
        MethodChoice(name="larf", options={"layer": 3}),
        MethodChoice(name="nearest", options={"layer": 6}),
        "saft",
    ]
    done = compare_methods(rows, options, EmbedLayers("toy", [5]), references, cost_rows=16)
    assert read == [(3, 6, 5)]
    assert {one.method: one.layer for one in done.entries} == {
        "larf": 3, "nearest": 6, "saft": 5, "length": None, "random": None,
    }  # fmt: skip
    reading = {one.embed_seconds for one in done.entries if one.layer is not None}
    assert len(reading) == 1
    assert reading.pop() > 0
    assert all(one.score_seconds > 0 and one.separation is None for one in done.entries)


def test_the_cost_is_of_work_done_not_of_a_warm_cache(rows, references, monkeypatch):
    """A second run finds every vector in the row cache; the seconds it states must not shrink to nothing."""
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "on")
    cost = [
        compare_methods(rows, ["larf"], EmbedLayers("toy", [5]), references, cost_rows=120).entries[0].embed_seconds
        for _ in range(2)
    ]
    assert cost[1] > cost[0] / 8


def test_a_method_that_lacks_something_is_left_out_with_its_reason(rows, references, tmp_path):
    given = [
        "larf",
        MethodChoice(name="nearest", options={"cheese": 1}),
        MethodChoice(name="anchor", options={"top": 99}),
    ]
    done = compare_methods(rows, given, EmbedLayers("toy", [5]), references, label="label", cost_rows=8)
    assert set(done.skipped) == {"nearest", "anchor"}
    assert "cheese" in done.skipped["nearest"]
    assert [line["left out"] for line in done.skipped_table()] == ["nearest", "anchor"]
    alone = compare_methods(rows, ["saft", "larf"], EmbedLayers("toy", [5]), cost_rows=8)
    assert "references" in alone.skipped["larf"]
    with pytest.raises(DataError, match="no method could be used"):
        compare_methods(rows, ["larf"], EmbedLayers("toy", [5]))
    with pytest.raises(OptionError, match="no method"):
        compare_methods(rows, ["length"], EmbedLayers("toy", [5]), references)
    with pytest.raises(OptionError, match="twice"):
        compare_methods(rows, ["larf", "larf"], EmbedLayers("toy", [5]), references)


def test_a_method_that_scores_none_of_the_rows_does_not_end_the_comparison(rows, references):
    from hf_safefilter.scores.seal import SealSelector

    stranger = SealSelector.of_logits({"0" * 32: 1.0})
    seal = MethodChoice(name="seal", options={"selector": stranger.digest})
    for label in ("label", None):
        done = compare_methods(
            rows, ["larf", seal, "rank_average"], EmbedLayers("toy", [5]), references, label=label, cost_rows=8
        )
        assert [one.method for one in done.entries] == ["larf", "rank_average", "length", "random"]
        assert "none of these rows" in done.skipped["seal"]
        assert "seal_score" not in done.scored.column_names


@pytest.mark.parametrize("name", ["length_score", "larf_score", "rank_average_score"])
def test_a_score_that_is_there_already_is_refused_before_anything_is_read(rows, references, monkeypatch, name):
    monkeypatch.setattr(compare, "embed_rows", lambda *_: pytest.fail("read too early"))
    with pytest.raises(DataError, match=name):
        compare_methods(
            rows.add_column(name, [0.0] * len(rows)), ["larf", "rank_average"], EmbedLayers("toy", [5]), references
        )


@pytest.mark.parametrize(("label", "unsafe"), [("cheese", "unsafe"), ("label", "cheese")])
def test_labels_are_checked_before_anything_is_read(rows, references, monkeypatch, label, unsafe):
    monkeypatch.setattr(compare, "embed_rows", lambda *_: pytest.fail("read too early"))
    with pytest.raises((DataError, MissingError), match=label):
        compare_methods(rows, ["larf"], EmbedLayers("toy", [5]), references, label=label, unsafe=unsafe)


def test_seal_needs_its_selector_and_is_compared_with_it(rows, references):
    from hf_safefilter.data.conversations import as_conversations
    from hf_safefilter.data.row_ids import row_id
    from hf_safefilter.scores.seal import SealSelector

    embed = EmbedLayers("toy", [5])
    without = compare_methods(rows, ["larf", "seal"], embed, references, cost_rows=8)
    assert "selector" in without.skipped["seal"]
    ids = [row_id(one) for one in as_conversations(rows)]
    selector = SealSelector.of_logits(
        {one: -float(label == "unsafe") for one, label in zip(ids, rows["label"], strict=True)}
    )
    seal = MethodChoice(name="seal", options={"selector": selector.digest})
    done = compare_methods(rows, ["larf", seal], embed, references, label="label", cost_rows=8)
    found = next(one for one in done.entries if one.method == "seal")
    assert (found.separation.auroc, found.layer, found.embed_seconds) == (1.0, None, None)


def test_rows_that_cannot_be_read_are_counted_and_every_split_is_scored(rows, references):
    broken = rows.select(range(30)).map(
        lambda row, at: {"response": "" if at == 4 else row["response"]}, with_indices=True
    )
    parts = DatasetDict({"train": broken, "test": rows.select(range(30, 60))})
    done = compare_methods(parts, ["larf"], EmbedLayers("toy", [5]), references, label="label", cost_rows=8)
    assert (done.rows, done.entries[0].scored, done.entries[0].separation.unscored) == (60, 59, 1)


def test_table_json_and_plot(found, tmp_path):
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert body["entries"][0]["separation"]["auroc"] == found.entries[0].separation.auroc
    assert Verdict.from_json(body["entries"][0]["verdict"]) == found.entries[0].verdict
    assert [line["score"] for line in found.table()] == [one.method for one in found.entries]
    for name in ("one", "two"):
        draw(found, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    shown = texts_of(tmp_path / "one.svg")
    assert {"score", "control", "chance", "AUROC, 95 % interval"} <= set(shown)
    findings = [text for text in shown if text in get_args(Finding)]
    assert sorted(findings) == sorted([*(one.verdict.finding for one in found.entries), "control"])  # and the legend's


@pytest.mark.filterwarnings("error")
def test_the_plot_without_labels_names_the_verdicts_beside_the_scores(found, tmp_path):
    bare = replace(found, label=None, entries=tuple(replace(one, separation=None) for one in found.entries))
    draw(replace(bare, agreement={one: dict.fromkeys(line) for one, line in bare.agreement.items()}), tmp_path / "plot")
    shown = texts_of(tmp_path / "plot.svg")
    assert {f"{one.method}: {one.verdict.finding}" for one in found.entries} <= set(shown)
    assert "AUROC, 95 % interval" not in shown


def test_without_labels_the_references_and_the_lengths_judge(rows, references):
    from hf_safefilter.locate.cross_validation import choose_layer

    done = compare_methods(rows, ["larf", "saft", "rank_average"], EmbedLayers("toy", [5]), references, cost_rows=8)
    verdicts = {entry.method: entry.verdict for entry in done.entries}
    tried = {one.layer: one for one in choose_layer(references, ("larf",)).candidates}[5]
    assert verdicts["larf"].held_out.value == pytest.approx(tried.auroc)
    assert verdicts["larf"].held_out.low == pytest.approx(tried.low)
    assert (verdicts["larf"].finding, verdicts["larf"].basis) == ("separates references", "references")
    # nothing is known of a part of the average, and so of the average
    assert verdicts["saft"].finding == verdicts["rank_average"].finding == "not known"
    assert (verdicts["length"].finding, done.best.method) == ("control", "larf")
    assert [line["verdict"] for line in done.table()] == [entry.verdict.finding for entry in done.entries]
    assert len(done.sentences()) == 3


def test_the_method_to_go_on_with_is_one_that_is_trusted(found):
    by_method = {entry.method: entry for entry in found.entries}
    worse = replace(by_method["larf"].verdict, auroc=Interval(0.8, 0.7, 0.9))
    refused = replace(by_method["nearest"].verdict, finding="like length", auroc=Interval(0.99, 0.98, 1.0))
    entries = tuple(
        replace(entry, verdict={"larf": worse, "length": entry.verdict, "random": entry.verdict}.get(name, refused))
        for name, entry in by_method.items()
    )
    assert replace(found, entries=entries).best.method == "larf"


def test_what_is_saved_can_be_scored_further(found, tmp_path):
    from hf_safefilter.saved.saved_rows import load_rows_with_steps, save_rows

    save_rows(found.scored, tmp_path / "scored", found.steps, name="rows", revision="none")
    again = load_rows_with_steps(tmp_path / "scored")
    assert tuple(again.steps) == found.steps
    assert load_from_disk(tmp_path / "scored").column_names == found.scored.column_names


def test_the_probe_is_compared_over_the_layers_that_it_reads():
    unsafe, safe = reference_rows(40, 3)
    embed = EmbedLayers("toy", [2, 3, 4])
    references = ReferenceIndex.build(unsafe, safe, embed, license="mit", source="a test")
    done = compare_methods(
        Dataset.from_list(mixed_rows(60, 0.3, 3)), ["larf", "probe"], embed, references, label="label"
    )
    layers = {entry.method: entry.layer for entry in done.entries}
    assert layers["probe"] == "2,3,4" and layers["larf"] in (2, 3, 4) and not done.skipped
    one = EmbedLayers("toy", [4])
    references = ReferenceIndex.build(unsafe, safe, one, license="mit", source="a test")
    done = compare_methods(Dataset.from_list(mixed_rows(60, 0.3, 3)), ["probe"], one, references, label="label")
    assert {entry.method: entry.layer for entry in done.entries}["probe"] == 4
