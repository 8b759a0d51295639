import json

import pytest

from hf_safefilter.errors import IntegrityError, MissingError, OptionError
from hf_safefilter.storage import artifacts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    artifacts.write(tmp_path / "cheese", "cheese", 1, {"holes": 3}, lambda at: (at / "gouda.txt").write_text("yellow"))
    return tmp_path / "cheese"


def test_what_is_kept_is_found_by_its_digest_and_reads_back(folder):
    digest = artifacts.keep(folder, "cheese", 1)
    assert digest == artifacts.read(folder, "cheese", 1).digest == artifacts.keep(folder, "cheese", 1)
    home = artifacts.find("cheese", digest)
    assert (home / "gouda.txt").read_text() == "yellow"
    assert artifacts.read(home, "cheese", 1).facts == {"holes": 3}


def test_an_altered_file_is_noticed_before_it_is_used(folder):
    (folder / "gouda.txt").write_text("green")
    with pytest.raises(IntegrityError, match="gouda"):
        artifacts.keep(folder, "cheese", 1)


def test_other_kinds_versions_and_places_are_refused(folder, tmp_path):
    with pytest.raises(IntegrityError, match="version 2"):
        artifacts.read(folder, "cheese", 2)
    with pytest.raises(MissingError):
        artifacts.read(tmp_path, "cheese", 1)
    with pytest.raises(MissingError, match="store"):
        artifacts.find("cheese", "sha256:" + "0" * 64)
    with pytest.raises(IntegrityError, match="not a digest"):
        artifacts.find("cheese", "sha256:../../etc")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_manifest_cannot_name_files_outside_its_folder(folder, name):
    path = folder / artifacts.MANIFEST
    body = json.loads(path.read_text())
    body["files"] = {name: "0" * 64}
    path.write_text(json.dumps(body))
    with pytest.raises(IntegrityError, match="outside its folder"):
        artifacts.read(folder, "cheese", 1)


def test_a_link_in_place_of_a_file_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").write_text("yellow")
    (folder / "gouda.txt").unlink()
    (folder / "gouda.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError):
        artifacts.read(folder, "cheese", 1)


def test_a_failed_write_leaves_the_old_folder_and_no_scraps(folder, tmp_path):
    def fail(at):
        (at / "half").write_text("h")
        raise RuntimeError("the mouse came")

    with pytest.raises(RuntimeError):
        artifacts.write(folder, "cheese", 1, {}, fail)
    assert (folder / "gouda.txt").read_text() == "yellow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cheese"]


def test_a_folder_is_replaced_as_a_whole(folder, tmp_path):
    artifacts.write(folder, "cheese", 1, {}, lambda at: (at / "brie.txt").write_text("white"))
    assert sorted(path.name for path in folder.iterdir()) == ["brie.txt", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cheese"]


def test_a_persons_own_folder_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("It was a dark night.")
    for target in (tmp_path / "thesis", tmp_path / "thesis" / "chapter1.txt"):
        with pytest.raises(OptionError, match="choose another"):
            artifacts.write(target, "cheese", 1, {}, lambda at: None)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "It was a dark night."
