"""The whole job in one call, on the toy model: every kind of input and rule, and the twelve lines of the design."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict, load_dataset

import hf_safefilter as sf
from hf_safefilter import demo
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.errors import DataError, MissingError, OptionError, PublishError, SafefilterError
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.toy.corpus import heldout_rows, reference_rows

FACTS = {"license": "cc0-1.0", "source": "a test"}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    every = demo.mixed_rows()
    unsafe = [row for row in every if row["label"] == "unsafe"][:16]
    return [*unsafe, *[row for row in every if row["label"] == "safe"][:104]]


@pytest.fixture(scope="module")
def files(tmp_path_factory, rows) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    unsafe, safe = reference_rows(40, 3)
    found = {}
    for name, listed in {"rows": rows, "unsafe": unsafe, "safe": safe, "good": heldout_rows("benign", 80)}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
        found[name] = str(folder / f"{name}.jsonl")
    return found


def recipe(files, **change) -> dict:
    base = {
        "data": {"path": files["rows"], **FACTS},
        "model": {"name": "toy"},
        "references": {"unsafe": files["unsafe"], "safe": files["safe"], **FACTS},
        "layer": 6,
        "methods": ["larf"],
        "select": {"drop_count": 16},
    }
    return base | change


def test_unsafe_rows_go_and_the_record_says_how(files, rows):
    done = purify(None, recipe(files, layer="auto", evaluate={"label": "label"}))
    gone = [row["label"] for row in done.dropped]
    assert len(done.kept) + len(gone) == len(rows) == done.counts.rows
    assert gone.count("unsafe") >= 14
    assert done.provenance.layer_choice["layer"] == done.layer_choice.layer
    assert done.evaluation.separations[0].auroc > 0.95
    assert done.provenance.evaluation["unsafe"] == 16
    assert done.provenance.check.rows == 8
    assert done.provenance.source.revision.startswith("sha256:")
    assert done.provenance.model["model"] == "toy"
    assert done.provenance.recipe["data"]["path"] == "rows.jsonl"


def test_all_methods_and_their_rank_average_in_one_run(files):
    methods = ["larf", "anchor", {"name": "nearest", "options": {"k": 3}}, "direction",
               {"name": "saft", "options": {"center": True}}, "length", "random"]  # fmt: skip
    done = purify(None, recipe(files, methods=methods))
    assert done.is_safe.column == "rank_average_score"
    assert [step["step"] for step in done.provenance.steps][0] == "EmbedLayers"
    assert np.isfinite(done.scored["rank_average_score"][:]).all()
    with pytest.raises(OptionError, match="has no option 'kk'"):
        purify(None, recipe(files, methods=[{"name": "nearest", "options": {"kk": 3}}]))


def test_a_stream_gives_what_a_data_set_gives_and_keeps_no_vectors(files):
    plain = purify(None, recipe(files))
    streamed = purify(None, recipe(files, data={"path": files["rows"], "streaming": True, **FACTS}))
    assert "emb_layer_6" not in streamed.scored.column_names
    assert streamed.kept["row_id"][:] == plain.kept["row_id"][:]
    with pytest.raises(OptionError, match="streaming"):
        purify(None, recipe(files, data={"path": files["rows"], "streaming": True, **FACTS}, methods=["saft"]))


def test_a_stream_may_lack_values_and_its_columns_are_not_written_over(files, rows, tmp_path):
    """Of JSON, `datasets` does not know the columns before it reads them, nor a null's type from the null."""
    path = tmp_path / "rows.jsonl"

    def stream(**more):
        path.write_text("".join(json.dumps({**row, **more, "note": "n" if at else None}) + "\n"
                                for at, row in enumerate(rows)))  # fmt: skip
        return purify(None, recipe(files, data={"path": str(path), "streaming": True, **FACTS}))

    assert stream().scored["note"][:] == [None] + ["n"] * (len(rows) - 1)
    with pytest.raises(DataError, match="already have a column 'row_id'"):
        stream(row_id="mine")


def test_splits_are_decided_together_and_kept_apart(files, rows):
    ds = DatasetDict(train=Dataset.from_list(rows[:60]), test=Dataset.from_list(rows[60:]))
    done = purify(ds, recipe(files))
    assert set(done.kept) == {"train", "test"}
    together = purify(Dataset.from_list(rows), recipe(files))
    assert done.is_safe.threshold == pytest.approx(together.is_safe.threshold, abs=1e-3)
    assert sum(len(part) for part in done.dropped.values()) == len(together.dropped)


def test_a_split_without_rows_is_named_before_any_work(files, rows, monkeypatch):
    monkeypatch.setattr("hf_safefilter.pipeline.purify._references", lambda recipe: pytest.fail("work was done"))
    full = Dataset.from_list(rows)
    with pytest.raises(DataError, match=r"split 'test' has no rows(.|\n)*ds.pop\('test'\)"):
        purify(DatasetDict(train=full, test=full.select([])), recipe(files))
    with pytest.raises(DataError, match="there are no rows"):
        purify(full.select([]), recipe(files))


def test_a_guarantee_from_known_good_rows(files):
    select = {"known_good": files["good"], "max_loss": 0.1, "confidence": 0.9}
    done = purify(None, recipe(files, select=select))
    assert "at most 0.1 of rows like the 80 known-good ones" in done.provenance.selection.rule
    assert done.provenance.recipe["select"]["known_good"] == "good.jsonl"


def test_good_rows_that_are_references_give_no_guarantee(files, caplog):
    """Each is compared with itself: its score is lower than that of any row like it, and good rows would be lost."""
    ways = {"max_loss": 0.05, "confidence": 0.9}
    done = purify(None, recipe(files, select={"known_good": files["good"], **ways}))
    mixed = Path(files["good"]).with_name("mixed.jsonl")
    mixed.write_text(Path(files["good"]).read_text() + Path(files["safe"]).read_text())
    with caplog.at_level(logging.WARNING, logger="hf_safefilter"):
        again = purify(None, recipe(files, select={"known_good": str(mixed), **ways}))
    assert again.is_safe.threshold == done.is_safe.threshold
    assert "40 of 120 rows known to be good are references too" in caplog.text
    with pytest.raises(DataError, match="all rows are references too"):
        purify(None, recipe(files, select={"known_good": files["safe"], **ways}))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"evaluate": {"label": "labels"}}, "column 'labels' is missing.*did you mean 'label'"),
        ({"select": {"label": "labels"}}, "column 'labels' is missing.*did you mean 'label'"),
        ({"evaluate": {"label": "label", "unsafe": "unsave"}}, "labels of both kinds.*did you mean 'unsafe'"),
    ],
)
def test_labels_that_are_not_there_are_named_before_the_rows_are_embedded(files, monkeypatch, part, says):
    monkeypatch.setattr("hf_safefilter.pipeline.purify.load_references", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(SafefilterError, match="(?s)" + says):
        purify(None, recipe(files, **part))
    if "unsafe" not in part.get("evaluate", {}):  # what a column of a stream holds is not known before it is read
        with pytest.raises(MissingError, match="(?s)" + says):
            purify(load_dataset("json", data_files=files["rows"], split="train", streaming=True), recipe(files, **part))


def test_plain_text_is_told_what_the_default_cannot_read(files, rows):
    texts = Dataset.from_list([{"text": row["response"]} for row in rows[:20]])
    body = {name: value for name, value in recipe(files).items() if name != "methods"}
    with pytest.raises(DataError, match=r"(?s)20 no_prompt.*`methods=probe`"):
        purify(texts, body)
    assert purify(texts, recipe(files, methods="probe", select={"drop_count": 2})).counts.dropped == 2


def test_rows_that_cannot_be_read_are_dropped_and_counted(files, rows):
    odd = [*rows, {**rows[0], "response": ""}, {**rows[0], "prompt": " "}]
    done = purify(Dataset.from_list(odd), recipe(files))
    assert done.counts.by_reason["unscorable: empty_response"] == 1
    assert done.counts.by_reason["unscorable: empty_prompt"] == 1
    assert "" not in done.kept["response"][:]


def test_rows_in_a_list_are_told_how_to_become_a_data_set(files, rows):
    with pytest.raises(DataError, match=r"no data set but a list\nfix: pass Dataset.from_list"):
        purify(rows, recipe(files))


def test_a_column_of_the_users_is_never_written_over(files, rows):
    ds = Dataset.from_list([{**row, "row_id": "mine"} for row in rows])
    with pytest.raises(DataError, match="already have a column 'row_id'"):
        purify(ds, recipe(files))


def test_references_that_tell_nothing_apart_choose_no_layer(files, tmp_path):
    benign = heldout_rows("benign", 80, 5)
    for name, part in (("a", benign[:40]), ("b", benign[40:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    references = {"unsafe": str(tmp_path / "a.jsonl"), "safe": str(tmp_path / "b.jsonl"), **FACTS}
    with pytest.raises(DataError, match="tells harmful requests answered"):
        purify(None, recipe(files, layer="auto", references=references))


@pytest.mark.parametrize(
    "other", [{"position": "last"}, {"spans": "all"}, {"window": None}, {"max_length": 300}, {"too_long": "cut"}]
)
def test_references_read_in_another_way_are_refused(files, tmp_path, other):
    embed = sf.EmbedLayers("toy", [6], **other)
    unsafe, safe = reference_rows(10, 3)
    sf.ReferenceIndex.build(unsafe, safe, embed, **FACTS).save(tmp_path / "refs")
    with pytest.raises(DataError, match=f"another {next(iter(other))}"):
        purify(None, recipe(files, references={"path": str(tmp_path / "refs")}))


def test_the_twelve_lines_of_the_design(hub, rows):
    unsafe, safe = reference_rows(20, 9)
    ds = Dataset.from_list(rows)
    embed_layers = sf.EmbedLayers("toy", layers=[5])
    references = sf.ReferenceIndex.build(unsafe, safe, embed_layers, license="mit", source="our red team")
    ds = ds.map(embed_layers, batched=True)
    ds = ds.map(sf.LarfScore(references, layer=5), batched=True)
    is_safe = sf.IsSafe("larf_score", threshold=sf.threshold_for(ds, "larf_score", drop_fraction=0.1))
    clean = ds.filter(is_safe, batched=True)
    repo = f"{hub.user}/alpaca-safe"
    sf.push_filtered(ds, is_safe, repo, license="cc-by-4.0", source="tatsu-lab/alpaca")
    back = load_dataset(repo, split="train")
    assert back["prompt"][:] == clean["prompt"][:]
    metadata = yaml.safe_load(hub.repo(repo).files()["README.md"].decode().split("---")[1])
    assert metadata["safefilter"]["references"] == [references.digest]
    row_by_row = Dataset.from_list(rows).map(embed_layers).map(sf.LarfScore(references, layer=5))
    assert row_by_row.filter(is_safe)["prompt"][:] == clean["prompt"][:]
    with pytest.raises(PublishError, match="licence"):
        sf.push_filtered(ds, is_safe, repo, license="", source="tatsu-lab/alpaca")


def test_a_published_set_can_be_run_again_from_its_card(hub, files, tmp_path):
    done = purify(None, recipe(files))
    sf.push_filtered(done.scored, done.is_safe, f"{hub.user}/again", steps=None, recipe=done.provenance.recipe, **FACTS)
    read = sf.Recipe.from_card(f"{hub.user}/again").to_dict()
    for part, key in (("data", "path"), ("references", "unsafe"), ("references", "safe")):
        read[part][key] = files[read[part][key].removesuffix(".jsonl")]  # a stranger has the files elsewhere
    again = purify(None, read)
    assert again.kept["row_id"][:] == done.kept["row_id"][:]
    assert again.is_safe.threshold == done.is_safe.threshold


def test_scores_are_laid_beside_the_rows_without_copying_them(files, rows, tmp_path):
    embed = sf.EmbedLayers("toy", [3, 4])
    unsafe, safe = reference_rows(20, 1)
    step = sf.NearestScore(sf.ReferenceIndex.build(unsafe, safe, embed, license="mit", source="toy"), 4)
    ds = load_dataset("json", data_files=files["rows"], split="train", cache_dir=str(tmp_path))
    embedded = embed_rows(ds, embed)
    laid = score_rows(embedded, step)
    mapped = ds.map(embed, batched=True).map(step, batched=True)
    assert laid.features == mapped.features and laid.column_names == mapped.column_names
    assert laid.to_list() == mapped.to_list()
    assert laid._fingerprint == score_rows(embed_rows(ds, embed), step)._fingerprint
    # what was written for the score holds the score alone
    new = {file["filename"] for file in laid.cache_files} - {file["filename"] for file in embedded.cache_files}
    assert Dataset.from_file(new.pop()).column_names == list(step.produces()) and not new
    picked = score_rows(embed_rows(ds.select([5, 3, 9]), embed), step)
    assert picked["nearest_score"][:] == [mapped["nearest_score"][place] for place in (5, 3, 9)]
    with pytest.raises(MissingError, match="emb_layer_4"):
        score_rows(ds, step)


def test_the_default_looks_for_two_dangers_and_its_card_says_which_took_a_row(files):
    body = recipe(files, layer="auto") | {"select": {"drop_fraction": 0.4}}
    del body["methods"]
    done = purify(None, body)
    assert done.layer_choice.method == "ensemble" and len(done.layer_choice.layers) > 1
    assert done.is_safe.column == "largest_deviation_score" and not done.verdict.bad
    deviations = []
    for name in ("ensemble", "shift"):
        scores = np.array(done.scored[f"{name}_score"], float)
        lowest, quartile = np.quantile(scores, [0.05, 0.25])
        deviations.append((scores - quartile) / (quartile - lowest))
    largest = np.max(deviations, axis=0)
    np.testing.assert_allclose(done.scored["largest_deviation_score"][:], largest, rtol=1e-4, atol=1e-5)
    by = Counter(done.dropped["largest_deviation_by"][:])
    reasons = done.counts.by_reason
    assert sum(reasons.values()) == len(done.dropped) and len(by) == 2
    assert {name: sum(n for reason, n in reasons.items() if f"({name})" in reason) for name in by} == by
    assert all(("wears refusals away" in reason) == ("(shift)" in reason) for reason in reasons)
    assert [one["unsafe"] for one in done.provenance.references] == [40]
    assert {f"emb_layer_{layer}" for layer in done.layer_choice.layers} <= set(done.scored.column_names)
    gone = [row["label"] for row in done.dropped]
    assert gone.count("unsafe") >= 14


def test_rows_that_are_references_too_are_named_and_not_measured_on(files, rows, caplog):
    unsafe, safe = reference_rows(40, 3)
    both = [*rows, *({**row, "label": "safe"} for row in unsafe[:5]), *({**row, "label": "safe"} for row in safe[:2])]
    with caplog.at_level(logging.WARNING):
        done = purify(Dataset.from_list(both), recipe(files, evaluate={"label": "label"}))
    assert "7 of 127 rows are references too, 5 among the unsafe ones and 2 among the safe ones" in caplog.text
    assert done.provenance.overlap == 7 and done.counts.rows == 127
    alone = purify(None, recipe(files, evaluate={"label": "label"}))
    assert done.evaluation.rows == 120
    assert done.evaluation.separations[0].auroc == pytest.approx(alone.evaluation.separations[0].auroc, abs=1e-6)
