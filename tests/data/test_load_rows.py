import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.errors import DataError, MissingError, OptionError

ROWS = [{"prompt": "Who is Zelda?", "response": "A princess."}, {"prompt": "And Link?", "response": "A hero."}]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    ds = Dataset.from_list(ROWS)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "rows.json").write_text(json.dumps(ROWS))
    ds.to_csv(folder / "rows.csv")
    ds.to_parquet(folder / "rows.parquet")
    ds.save_to_disk(folder / "saved")
    arrow = next((folder / "saved").glob("*.arrow"))
    (folder / "rows.arrow").write_bytes(arrow.read_bytes())
    (folder / "plain").mkdir()
    (folder / "plain" / "rows.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    DatasetDict(train=ds, test=ds).save_to_disk(folder / "splits")
    return folder


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow", "saved", "plain"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_form_gives_the_same_rows(files, name, streaming):
    loaded = load_rows(files / name, streaming=streaming)
    assert isinstance(loaded.rows, IterableDataset if streaming else Dataset)
    assert [dict(row) for row in loaded.rows] == ROWS
    assert loaded.name == name
    assert loaded.revision.startswith("sha256:")


def test_splits_stay_apart_or_one_is_taken(files):
    assert set(load_rows(files / "splits").rows) == {"train", "test"}
    assert len(load_rows(files / "splits", split="test").rows) == 2
    with pytest.raises(MissingError, match="found: train, test"):
        load_rows(files / "splits", split="dev")
    streamed = load_rows(files / "splits", streaming=True).rows
    assert [row["prompt"] for row in streamed["test"]] == [row["prompt"] for row in ROWS]


def test_the_revision_of_local_rows_is_their_content(files, tmp_path):
    again = tmp_path / "other.jsonl"
    again.write_bytes((files / "rows.jsonl").read_bytes())
    assert load_rows(again).revision == load_rows(files / "rows.jsonl").revision
    again.write_text(json.dumps(ROWS[0]) + "\n")
    assert load_rows(again).revision != load_rows(files / "rows.jsonl").revision


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"prompt": "x"}\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": "x"}\n[1]\n', "line 2 is JSON but not an object"),
        ("a.jsonl", "", "is empty"),
        ("a.txt", "hello", "not a file of rows"),
        ("a.parquet", "no parquet", "cannot be read"),
    ],
)
def test_a_broken_file_is_named_without_repeating_its_text(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says) as error:
        load_rows(tmp_path / name)
    assert "not json" not in str(error.value)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(MissingError, match="no file, folder or Hub data set"):
        load_rows(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no rows"):
        load_rows(tmp_path / "empty")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(OptionError, match="local"):
        load_rows(tmp_path / "a.jsonl", revision="main")


def test_a_hub_data_set_is_pinned_to_its_commit(hub):
    name = f"{hub.user}/rows"
    Dataset.from_list(ROWS).push_to_hub(name)
    loaded = load_rows(name)
    assert (loaded.name, loaded.revision) == (name, hub.repo(name).head())
    assert loaded.rows.to_list() == ROWS
    assert [dict(row) for row in load_rows(name, streaming=True, split="train").rows] == ROWS
    first = loaded.revision
    Dataset.from_list(ROWS[:1]).push_to_hub(name)
    assert len(load_rows(name, revision=first).rows) == 2
    assert len(load_rows(name).rows) == 1
    with pytest.raises(MissingError, match="the Hub has none, or hides it"):
        load_rows(f"{hub.user}/nothing")
    with pytest.raises(MissingError, match="has no such revision"):
        load_rows(name, revision="no-such-branch")
