"""A recipe on rows of several shapes in one file: dialogues of several answers beside prompts with a response."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from mixed_shapes import mixed_shapes

import hf_safefilter as sf
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.pipeline.purify import purify
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.toy.corpus import reference_rows

FACTS = {"license": "cc0-1.0", "source": "a test"}
LAYER = 4


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return mixed_shapes(120, 0.1, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory, rows) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    unsafe, safe = reference_rows(30, 5)
    for name, listed in {"rows": rows, "unsafe": unsafe, "safe": safe}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def recipe(files) -> dict:
    return {
        "data": {"path": files["rows"], **FACTS},
        "model": "toy",
        "references": {"unsafe": files["unsafe"], "safe": files["safe"], **FACTS},
        "layer": LAYER,
        "methods": ["larf", "nearest"],
        "select": {"by": "larf", "drop_count": 19},
        "evaluate": {"label": "label"},
    }


@pytest.fixture(scope="module")
def done(recipe):
    return purify(None, recipe)


def test_every_row_is_read_and_every_answer_of_it(done, rows):
    assert done.scored["unscorable"][:] == [""] * len(rows)
    turns = [{span["turn"] for span in spans} for spans in done.scored["spans"][:]]
    assert turns == [{1, 3} if "messages" in row else {1} for row in rows]
    assert done.scored["row_id"][:] == [row_id(one) for row in rows for one in as_conversations([row])]


def test_a_row_has_the_score_that_it_has_among_rows_of_its_own_shape(done, rows):
    step = next(step for step in done.provenance.steps if step["step"] == "LarfScore")
    score = sf.LarfScore(step["references"], LAYER)
    for first in (0, 1):
        alike = Dataset.from_list(rows[first::2]).map(EmbedLayers("toy", [LAYER]), batched=True)
        scores = alike.map(score, batched=True)["larf_score"][:]
        assert np.allclose(done.scored["larf_score"][first::2], scores, atol=2e-3)


def test_the_score_of_a_row_is_that_of_its_worst_answer(done):
    """The second route: each answer is put into a row of its own, with the turns before it, which it is read after."""
    step = next(step for step in done.provenance.steps if step["step"] == "LarfScore")
    dialogues = [row for row in done.scored if row["messages"] is not None]
    parts = [{"messages": row["messages"][:2]} for row in dialogues]
    last = [{"messages": [*row["messages"][:1], {**row["messages"][1], "weight": 0}, *row["messages"][2:]]}
            for row in dialogues]  # fmt: skip
    scored = Dataset.from_list([*parts, *last]).map(EmbedLayers("toy", [LAYER]), batched=True)
    scored = scored.map(sf.LarfScore(step["references"], LAYER), batched=True)
    each = np.array(scored["larf_score"][:]).reshape(2, -1)
    assert np.allclose([row["larf_score"] for row in dialogues], each.max(axis=0), atol=2e-3)


def test_the_unsafe_answer_is_found_in_whichever_turn_it_stands(done):
    assert done.evaluation.separations[0].auroc > 0.97
    unsafe = [row for row in done.scored if row["messages"] is not None and row["label"] == "unsafe"]
    assert {row["unsafe_turn"] for row in unsafe} == {1, 3}
    hits = [row["spans"][row["larf_span"]]["turn"] == row["unsafe_turn"] for row in unsafe]
    assert len(hits) > 10 and np.mean(hits) > 0.9


def test_what_is_written_are_the_rows_as_they_came(done, rows, tmp_path):
    write_folder(tmp_path / "out", done.scored, done.is_safe, done.provenance)
    back = load_dataset(str(tmp_path / "out"), split="train").to_list()
    kept = [{name: value for name, value in row.items() if value is not None} for row in back]
    assert kept == [row for row, score in zip(rows, done.scored["larf_score"][:], strict=True)
                    if score < done.is_safe.threshold]  # fmt: skip
    assert len(kept) == len(rows) - 19


def test_a_stream_of_them_is_decided_alike(done, recipe):
    streamed = purify(None, recipe | {"data": recipe["data"] | {"streaming": True}})
    assert streamed.counts == done.counts
    assert streamed.kept["row_id"][:] == done.kept["row_id"][:]
    assert streamed.scored["spans"][:] == done.scored["spans"][:]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_one_shape_each_are_one_set(done, recipe, rows, tmp_path, streaming):
    for name, part in (("a", rows[::2]), ("b", rows[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    other = purify(None, recipe | {"data": {"path": str(tmp_path), "streaming": streaming, **FACTS}})
    assert other.counts.kept == done.counts.kept
    assert set(other.kept["row_id"][:]) == set(done.kept["row_id"][:])


@pytest.fixture
def readers(monkeypatch):
    """Every step that a recipe makes to read rows."""
    made, real = [], EmbedLayers.of

    def of(*given):
        made.append(real(*given))
        return made[-1]

    monkeypatch.setattr(EmbedLayers, "of", of)
    return made


def test_the_options_of_a_recipe_reach_the_steps_that_read(recipe, readers):
    reading = {"name": "toy", "position": "mean,last_content", "spans": "all", "window": 12, "too_long": "cut",
               "ignore": ["b", "a"]}  # fmt: skip
    purify(None, recipe | {"model": reading})
    assert len(readers) == 2  # of the references and of the rows
    for step in readers:
        assert (step.position, step.spans, step.window, step.too_long) == ("mean,last_content", "all", 12, "cut")
        assert step.ignore == ("a", "b")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_with_text_that_is_not_read_is_dropped_unless_it_is_ignored(recipe, rows, tmp_path, streaming):
    asides = [{**row, "text": "an aside"} if at < 5 else row for at, row in enumerate(rows[:40])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asides))
    few = recipe | {"select": {"by": "larf", "drop_count": 3}}
    few["data"] = {"path": str(tmp_path / "rows.jsonl"), "streaming": streaming, **FACTS}
    assert purify(None, few).counts.by_reason["unscorable: unread_text"] == 5
    ignored = purify(None, few | {"model": {"name": "toy", "ignore": ["text"]}})
    assert [name for name in ignored.counts.by_reason if "unscorable" in name] == []
    assert ignored.provenance.recipe["model"]["ignore"] == ["text"]
    assert ignored.provenance.controls["length_score"] is not None
