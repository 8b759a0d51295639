"""The rule of containment: plain names, regular files, inside, of the kind expected."""

import os

import pytest

from hf_safefilter.storage.contained import fault_of, fault_of_name, is_plain


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "own.json").write_text("{}")
    return tmp_path / "box"


@pytest.mark.parametrize("name", ["own.json", "model-00001-of-00002.safetensors", "_x", "a b"])
def test_plain_names(name):
    assert is_plain(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/a", "../a", "a\\b", "C:a", "http://a", "*.json", "a\0", "x" * 300, None, 3],
)
def test_names_that_lead_elsewhere_are_not_plain(name, folder):
    assert not is_plain(name)
    assert fault_of_name(folder, name) == "is not the plain name of a file"


def test_a_file_of_the_folder_is_good_and_others_are_named_for_what_they_are(folder):
    assert fault_of_name(folder, "own.json", (".json",)) is None
    assert fault_of_name(folder, "own.json", (".parquet", ".png")) == "is not a .parquet or .png file"
    assert fault_of_name(folder, "none.json") == "is missing"
    (folder / "sub.json").mkdir()
    assert fault_of_name(folder, "sub.json") == "is not a regular file"
    os.mkfifo(folder / "pipe.json")
    assert fault_of_name(folder, "pipe.json") == "is not a regular file"


def test_links_are_followed_to_where_they_lead(folder):
    (folder / "inner.json").symlink_to("own.json")
    (folder / "outer.json").symlink_to(folder.parent / "secret.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "up").symlink_to(folder.parent)
    assert fault_of_name(folder, "inner.json") is None
    assert fault_of(folder, folder / "inner.json", links=False) == "is a link, not a file"
    assert fault_of_name(folder, "outer.json") == "is outside the folder"
    assert fault_of(folder, folder / "up" / "secret.json") == "is outside the folder"
    assert fault_of_name(folder, "loop.json") is not None


def test_a_snapshot_of_the_hubs_cache_keeps_its_files_in_the_store_beside_it(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "c0ffee", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1234").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    (snapshot / "other.json").symlink_to("../../secret")
    assert fault_of_name(snapshot, "config.json") is None
    assert fault_of_name(snapshot, "other.json") == "is outside the folder"
    (blobs / "1234").unlink()
    blobs.rmdir()
    blobs.symlink_to(tmp_path)  # a store that is a link leads anywhere
    (snapshot / "link.json").symlink_to("../../blobs/secret")
    assert fault_of_name(snapshot, "link.json") == "is outside the folder"
