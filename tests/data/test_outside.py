"""Sets from strangers: files outside the folder are not read, whatever lists, cards, links and cells name."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.errors import DataError

ROWS = [{"prompt": "How are you?", "response": "Fine."}, {"prompt": "And now?", "response": "Still fine."}]
SECRET = [{"prompt": "the secret", "response": "of another folder"}]


@pytest.fixture
def saved(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "mine")
    Dataset.from_list(SECRET).save_to_disk(tmp_path / "other")
    (tmp_path / "other.jsonl").write_text(json.dumps(SECRET[0]) + "\n")
    return tmp_path / "mine"


def name_files(folder, *names):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name} for name in names]}))


# Folders of save_to_disk


def test_files_of_the_folder_are_read(saved):
    assert load_rows(saved).rows.to_list() == ROWS


@pytest.mark.parametrize(
    "name",
    [
        "../other/data-00000-of-00001.arrow",
        "/etc/passwd",
        "http://127.0.0.1/x.arrow",
        "state.json",
        "none.arrow",
        None,
        3,
    ],
)
def test_a_list_of_files_does_not_lead_out(saved, name):
    name_files(saved, name)
    with pytest.raises(DataError, match="names a file of rows that is"):
        load_rows(saved)


def test_a_link_does_not_either(saved):
    file = saved / "data-00000-of-00001.arrow"
    file.unlink()
    file.symlink_to(saved.parent / "other" / file.name)
    with pytest.raises(DataError, match="is outside the folder"):
        load_rows(saved)


@pytest.mark.parametrize("splits", [["../other"], ["train", "../other"], "train", [], None, [3], [""], ["none"]])
def test_a_list_of_splits_does_not_either(saved, tmp_path, splits):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    assert set(load_rows(tmp_path / "both").rows) == {"train", "test"}
    (tmp_path / "both" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(DataError):
        load_rows(tmp_path / "both")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000, '{"features": 3, "_data_files": {}}', "\ufeff"])
def test_damaged_lists_are_said(saved, name, text):
    (saved / name).write_text(text)
    try:
        assert load_rows(saved).rows.to_list() == ROWS  # features are not needed
    except DataError as error:
        assert error.fix


def test_a_cut_file_of_rows_is_said(saved):
    file = saved / "data-00000-of-00001.arrow"
    for size in (file.stat().st_size // 2, 10, 0):
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(DataError):
            load_rows(saved)


# Cards and links in folders of files


def carded(tmp_path, files, name="set"):
    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    head = json.dumps({"configs": [{"config_name": "default", "data_files": files}]})  # JSON is YAML
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    return folder


def test_a_card_names_its_own_files(tmp_path, saved):
    assert load_rows(carded(tmp_path, [{"split": "train", "path": "data/*"}])).rows.to_list() == ROWS


@pytest.mark.parametrize(
    "path",
    ["../other.jsonl", "/etc/passwd", "~/x.jsonl", "http://127.0.0.1/x.jsonl", "hf://datasets/a/b/x.jsonl",
     "data/../../other.jsonl",
     "zip://a::b", "", "***", "data/none*", "README.md", None, 3, ["data/a.jsonl", "../other.jsonl"], {"a": 1},
     "a\x00b", "..\\\\other.jsonl"],
    ids=repr,
)  # fmt: skip
def test_a_card_does_not_lead_out(tmp_path, saved, path):
    with pytest.raises(DataError):
        load_rows(carded(tmp_path, [{"split": "train", "path": path}]))


def test_links_in_a_folder_are_not_followed_out(tmp_path, saved):
    folder = carded(tmp_path, [{"split": "train", "path": "data/*"}])
    (folder / "data" / "b.jsonl").symlink_to(tmp_path / "other.jsonl")
    for _ in range(2):
        with pytest.raises(DataError, match="b.jsonl in the folder set is outside the folder"):
            load_rows(folder)
        (folder / "README.md").unlink(missing_ok=True)
    (folder / "data" / "b.jsonl").unlink()
    (folder / "data" / "b.jsonl").symlink_to("a.jsonl")
    assert len(load_rows(folder).rows) == 4


def test_a_card_on_the_hub_is_held_to_the_same_rule(hub, tmp_path, saved):
    from huggingface_hub import HfApi

    name = f"{hub.user}/rows"
    HfApi().create_repo(name, repo_type="dataset")
    for path, leads_out in ((str(tmp_path / "other.jsonl"), True), ("data/*", False)):
        folder = carded(tmp_path, [{"split": "train", "path": path}], name=f"set{leads_out}")
        HfApi().upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
        if leads_out:
            with pytest.raises(DataError, match="names files outside it"):
                load_rows(name)
    assert load_rows(name).rows.to_list() == ROWS


# Cells


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_picture_named_in_a_cell_is_not_opened(tmp_path, nested, streaming):
    (tmp_path / "picture.png").write_bytes(b"not to be opened")
    cell = {"bytes": None, "path": str(tmp_path / "picture.png")}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([[cell]] * 2, pa.list_(kind)) if nested else pa.array([cell] * 2, kind)
    features = Features(prompt=Value("string"), image=List(Image()) if nested else Image())
    table = pa.table({"prompt": ["a", "b"], "image": cells})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features.to_dict()}})})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = load_rows(tmp_path / "rows.parquet", streaming=streaming).rows
    assert next(iter(rows))["image"] == ([cell] if nested else cell)


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_in_a_saved_folder_are_not_opened_and_nothing_is_laid_beside_them(tmp_path, nested):
    """Not even what a planted copy of other rows would be taken for."""
    cell = {"bytes": b"no picture", "path": None}
    features = Features(prompt=Value("string"), image=List(Image(decode=False)) if nested else Image(decode=False))
    rows = Dataset.from_dict({"prompt": ["a"], "image": [[cell] if nested else cell]}, features=features)
    decoded = Features(prompt=Value("string"), image=List(Image()) if nested else Image())
    rows.cast(decoded).save_to_disk(tmp_path / "set")
    before = sorted(path.name for path in (tmp_path / "set").iterdir())
    for _ in range(2):
        loaded = load_rows(tmp_path / "set").rows
        assert loaded[0] == {"prompt": "a", "image": [cell] if nested else cell}
        assert loaded.select([0])[0]["prompt"] == "a"
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == before


def test_a_folder_of_splits_and_of_rows_at_once_is_refused(saved):
    """`datasets` reads the state of such a folder; the list of splits says nothing of its files."""
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    shutil.copytree(saved, saved.parent / "train")
    shutil.move(saved.parent / "train", saved / "train")
    (saved / "train" / "dataset_dict.json").unlink()
    name_files(saved, "../other/data-00000-of-00001.arrow")
    with pytest.raises(DataError, match="is damaged"):
        load_rows(saved)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_compressed_file_of_columns_is_held_to_what_is_in_it(tmp_path, kind):
    rows = Dataset.from_list(ROWS)
    if kind == "parquet":
        rows.to_parquet(tmp_path / "rows.parquet")
    else:
        with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.data.schema) as stream:
            stream.write_table(rows.data.table)
    plain = tmp_path / f"rows.{kind}"
    with gzip.open(f"{plain}.gz", "wb") as packed:
        packed.write(plain.read_bytes())
    assert load_rows(f"{plain}.gz").rows.to_list() == ROWS


@pytest.mark.parametrize("split", [None, ["train"], {"a": 1}, 3])
def test_a_split_that_is_no_name_is_said(tmp_path, split):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    config = {"configs": [{"config_name": "default", "data_files": [{"split": split, "path": "rows.jsonl"}]}]}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(config)}\n---\n")
    with pytest.raises(DataError, match="split that is no name"):
        load_rows(tmp_path)


def test_nothing_is_written_beside_the_source(saved):
    before = sorted(path.name for path in saved.rglob("*"))
    load_rows(saved)
    assert sorted(path.name for path in saved.rglob("*")) == before
    shutil.rmtree(saved)


def test_an_unusable_home_is_not_the_files_fault(tmp_path, monkeypatch, call):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    code, _, err = call("score", tmp_path / "a.jsonl", "--method", "length", "--output", tmp_path / "out")
    assert code == 1 and "HF_HOME" in err and "correct the file" not in err
