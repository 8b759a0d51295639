import json
import subprocess
import sys
from pathlib import Path

import mlcroissant
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import DatasetDict, load_dataset

from hf_safefilter import EmbedLayers
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.errors import OptionError, PublishError
from hf_safefilter.publish.card import BEGIN, END, render
from hf_safefilter.publish.data_files import read_published
from hf_safefilter.publish.folder import write_folder
from hf_safefilter.publish.gather import gather

from .conftest import SECRET

GOLDEN = Path(__file__).parents[2] / "cards"


@pytest.fixture(scope="module")
def record(scored, is_safe, steps):
    gathered = gather(scored, is_safe, license="mit", source="a barn", steps=steps)
    fixed = {"python": "3.11.0", "platform": "Linux", "torch": "2.13.0"}
    return gathered.model_copy(update={"created": "2026-01-01", "environment": fixed, "tool": "hf_safefilter 0.1.0"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scored, is_safe, record):
    out = tmp_path_factory.mktemp("out") / "folder"
    write_folder(out, scored, is_safe, record)
    return out


def test_the_kept_rows_come_back_as_they_went_in(folder, scored):
    kept = load_dataset(str(folder), split="train")
    own = scored.remove_columns(["random_score", "length_score"])
    assert kept.features == own.features
    assert kept.to_list() == [row for row in own.to_list() if len(row["response"]) < 200]


def test_dropped_rows_are_listed_without_their_text(folder, scored):
    table = pq.read_table(folder / "dropped.parquet")
    assert table.column_names == ["split", "row_id", "random_score", "length_score", "reason"]
    assert table.num_rows == 10
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_text_goes_along_only_if_asked_for(tmp_path, scored, is_safe, record):
    write_folder(tmp_path / "out", scored, is_safe, record, include_text=True)
    assert SECRET in pq.read_table(tmp_path / "out" / "dropped.parquet")["row_response"][0].as_py()
    assert "its text is not published" not in (tmp_path / "out" / "README.md").read_text()


def test_the_card_is_the_golden_card(folder):
    """After a wanted change: copy the file that the message names over the golden one, and read the difference."""
    golden = GOLDEN / "lengths.md"
    written = (folder / "README.md").read_text(encoding="utf-8")
    # Sizes of parquet files move with the version of pyarrow; everything else is fixed.
    plain = [line for line in written.splitlines() if "_size:" not in line and "num_bytes:" not in line]
    expected = golden.read_text(encoding="utf-8").splitlines()
    assert plain == expected, f"compare {folder / 'README.md'} with {golden}"


def test_the_card_says_what_the_hub_reads(folder):
    metadata = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert metadata["license"] == "mit"
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert metadata["dataset_info"]["splits"][0]["num_examples"] == 50
    assert metadata["safefilter"]["threshold"] == 200.0


def test_hostile_names_stay_text(folder):
    card = (folder / "README.md").read_text()
    assert "&lt;b&gt;\\|hard\\|&lt;/b&gt;" in card
    assert "<b>" not in card
    assert "\\{\\{ 7 \\* 7 \\}\\}" in card


def test_an_existing_card_keeps_its_own_words_and_keys(folder, record):
    own = "---\nlicense: apache-2.0\nlanguage: en\ntags: [barn]\n---\n# My barn\n\nI wrote this.\n"
    published = read_published(folder)
    once = render(record, published, existing=own)
    twice = render(record, published, existing=once)
    assert once == twice
    metadata = yaml.safe_load(once.split("---")[1])
    assert (metadata["language"], metadata["tags"], metadata["license"]) == ("en", ["barn", "safefilter"], "mit")
    assert "# My barn\n\nI wrote this.\n" in once
    assert once.count(BEGIN) == once.count(END) == 1


def test_the_croissant_record_is_valid_and_its_hashes_hold(folder):
    record = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    assert not record.metadata.ctx.issues.errors
    rows = list(record.records("train"))
    assert len(rows) == 50
    assert rows[0]["train/prompt"] == b"Question 0?"
    body = json.loads((folder / "croissant.json").read_text())
    body["distribution"][0]["sha256"] = "0" * 64
    (folder.parent / "data").mkdir(exist_ok=True)
    shard = folder / "data" / "train-00000-of-00001.parquet"
    (folder.parent / "data" / shard.name).write_bytes(shard.read_bytes())
    (folder.parent / "wrong.json").write_text(json.dumps(body))
    with pytest.raises(Exception, match="Download"):
        list(mlcroissant.Dataset(jsonld=folder.parent / "wrong.json").records("train"))


def test_the_same_decision_gives_the_same_bytes(tmp_path, folder, scored, is_safe, record):
    write_folder(tmp_path / "again", scored, is_safe, record)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_nothing_kept_and_a_folder_of_others_are_refused(tmp_path, scored, steps, record):
    with pytest.raises(PublishError, match="no row was kept"):
        write_folder(tmp_path / "out", scored, IsSafe("length_score", 0.0), record)
    assert not (tmp_path / "out").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="would be lost"):
        write_folder(tmp_path, scored, IsSafe("length_score", 200.0), record)


def test_splits_go_into_files_of_their_own(tmp_path, scored, is_safe, steps):
    ds = DatasetDict(train=scored.select(range(0, 60, 2)), test=scored.select(range(1, 60, 2)))
    write_folder(tmp_path / "out", ds, is_safe, gather(ds, is_safe, license="mit", source="s", steps=steps))
    back = load_dataset(str(tmp_path / "out"))
    assert {name: len(part) for name, part in back.items()} == {"train": 25, "test": 25}


def test_the_croissant_program_agrees(folder):
    command = [sys.executable, "-m", "mlcroissant.scripts.cli", "validate", "--jsonld", str(folder / "croissant.json")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module" in process.stderr:
        command = [str(Path(sys.executable).with_name("mlcroissant")), *command[3:]]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_card_says_how_quantised_weights_were_stored_and_read(folder, record):
    plain = EmbedLayers("toy", [2]).describe()
    for model, words in ((plain, "float32, layers"), (plain | {"weights": "fp8, dequantised"}, "(weights: fp8")):
        card = render(record.model_copy(update={"model": model}), read_published(folder))
        assert words in card and ("weights:" in card) is ("weights" in model)
