"""Rows on disk with the steps that filled their columns: a later command has the same steps again."""

import json
import shutil

import pytest
from datasets import Dataset

from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import IntegrityError, MissingError, OptionError
from hf_safefilter.model.reading_options import HOW
from hf_safefilter.saved.saved_rows import TRAIL, load_rows_with_steps, save_rows
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.storage.recorded_files import record_files
from hf_safefilter.toy import toy_model_path

COLUMNS = {"prompt": "q", "response": "a"}


@pytest.fixture
def steps():
    embed = EmbedLayers(
        "toy", [2], columns=COLUMNS, position="last,mean", spans="all", window=9, too_long="drop", ignore=["b", "a"]
    )
    return [embed, LengthScore(embed.mapping)]


@pytest.fixture
def folder(steps, tmp_path):
    rows = Dataset.from_list([{"q": "How are you?", "a": "Well.", "text": "an aside"}])
    for step in steps:
        rows = rows.map(step, batched=True)
    save_rows(rows, tmp_path / "saved", steps, name="rows", revision="none")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", sorted(HOW))
def test_a_folder_of_before_an_option_of_how_rows_are_read_is_read(folder, steps, name):
    altered(folder, lambda record: record.pop(name))
    assert load_rows_with_steps(folder).steps == steps


@pytest.mark.parametrize("name", ["window", "dtype", "algorithm", "spans"])
def test_an_option_that_decides_what_is_read_may_not_be_missing(folder, name):
    altered(folder, lambda record: record.pop(name))
    with pytest.raises(IntegrityError, match="gives other values"):
        load_rows_with_steps(folder)


def altered(folder, change):
    """The record of the reading step is another, and signed as such."""
    body = json.loads((folder / TRAIL).read_text())
    change(body["steps"][0])
    (folder / TRAIL).write_text(json.dumps(body))
    record_files(folder, TRAIL)


def test_every_option_comes_back(folder, steps):
    saved = load_rows_with_steps(folder)
    assert saved.steps == steps
    assert [step.record() for step in saved.steps] == [step.record() for step in steps]


def test_a_record_is_what_json_makes_of_it(steps):
    for step in steps:
        assert json.loads(json.dumps(step.record())) == step.record()


def test_later_commands_know_where_things_stand_and_what_may_go_unread(folder):
    assert load_rows_with_steps(folder).mapping == COLUMNS | {"ignore": "a,b,trailing_turn"}


def test_without_an_embedding_nothing_is_said_about_columns(tmp_path):
    rows = Dataset.from_list([{"prompt": "How are you?", "response": "Well."}]).map(LengthScore(), batched=True)
    save_rows(rows, tmp_path / "saved", [LengthScore()], name="rows", revision="none")
    assert load_rows_with_steps(tmp_path / "saved").mapping is None


def test_rows_of_another_algorithm_are_refused(folder):
    altered(folder, lambda record: record.update(algorithm=1))
    with pytest.raises(IntegrityError, match="EmbedLayers gives other values"):
        load_rows_with_steps(folder)


def test_a_decision_on_scored_rows_needs_no_model(tmp_path):
    """The model may be far or gone: it is looked at when rows are read again."""
    model = tmp_path / "model"
    shutil.copytree(toy_model_path(), model)
    rows = Dataset.from_list([{"prompt": "How are you?", "response": "Well."}])
    embed = EmbedLayers(str(model), [2])
    save_rows(rows.map(embed, batched=True), tmp_path / "saved", [embed], name="rows", revision="none")
    shutil.rmtree(model)
    (step,) = load_rows_with_steps(tmp_path / "saved").steps
    assert step.record() == embed.record() and hash(step) == hash(embed)


def test_the_record_of_a_step_must_pin_its_model():
    record = EmbedLayers("toy", [2]).record()
    assert EmbedLayers.recorded(record).record() == record
    for change in ({"revision": None}, {"revision": 5}, {"position": "middle"}):
        with pytest.raises(OptionError):
            EmbedLayers.recorded(record | change)


def test_the_folder_around_scored_rows_and_a_folder_that_is_not_there_are_told_apart(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "labelled" / "scored")
    for name, says in (
        ("labelled", "name .*labelled/scored"),
        ("nothing", "there is no folder"),
        (".", "embed --help"),
    ):
        with pytest.raises(MissingError, match=says):
            load_rows_with_steps(tmp_path / name)
