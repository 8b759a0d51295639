import json
import shutil
from pathlib import Path

import pytest

from hf_safefilter.errors import IntegrityError, MissingError, OptionError
from hf_safefilter.storage import artifacts, atomic
from hf_safefilter.storage.atomic import atomic_folder, require_replaceable, require_writable


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


def _other(home):
    manifest = artifacts.Manifest("cheese", 1, {"holes": 4}, {})
    (home / artifacts.MANIFEST).write_text(manifest.to_json())


def _linked(home):
    home.rename(home.parent / "elsewhere")
    home.symlink_to(home.parent / "elsewhere")
    (home / "gouda.txt").write_text("green")


def _manifest(files, facts="{}"):
    body = f'{{"kind": "cheese", "version": 1, "facts": {facts}, "files": {files}}}'
    return lambda home: (home / artifacts.MANIFEST).write_text(body)


DAMAGED = {
    "another file": lambda home: (home / "gouda.txt").write_text("green"),
    "no file": lambda home: (home / "gouda.txt").unlink(),
    "no words of a manifest": lambda home: (home / artifacts.MANIFEST).write_text("green"),
    "no manifest": lambda home: (home / artifacts.MANIFEST).unlink(),
    "a folder for a manifest": lambda home: (
        (home / artifacts.MANIFEST).unlink(),
        (home / artifacts.MANIFEST).mkdir(),
    ),
    "the manifest of another": _other,
    "half of a character": _manifest("{}", '{"holes": "\\ud800"}'),
    "a number for a name": _manifest('[[1, "x"]]'),
    "a link": _linked,
    "a file for a folder": lambda home: (shutil.rmtree(home), home.write_text("green")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_copy_in_the_store_is_replaced_by_a_whole_one(folder, damage):
    digest = artifacts.keep(folder, "cheese", 1)
    home = artifacts.find("cheese", digest)
    DAMAGED[damage](home)
    assert not artifacts.is_kept(digest, "cheese", 1)
    assert artifacts.keep(folder, "cheese", 1) == digest
    assert artifacts.is_kept(digest, "cheese", 1) and not home.is_symlink()
    assert (home / "gouda.txt").read_text() == "yellow"


def test_what_is_no_digest_is_no_place_in_the_store(folder):
    with pytest.raises(IntegrityError, match="not a digest"):
        artifacts.is_kept("sha256:../../etc", "cheese", 1)


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


# Places that cannot be written


@pytest.mark.parametrize(
    "name", ["file/below", "file/far/below", "x" * 300, "a" * 220, "a\x00b", "good/" + "y" * 300 + "/z", "."]
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written|no file can be called"):
        require_replaceable(Path(name), None)


def test_a_new_place_in_new_folders_can_be_written(tmp_path):
    require_replaceable(tmp_path / "new" / "and" / "newer", None)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may write anywhere
    with pytest.raises(OptionError, match="read-only"):
        require_writable(tmp_path / "out")


@pytest.mark.parametrize("number", [1, 2])
def test_ctrl_c_between_the_two_renames_leaves_the_old_output(tmp_path, monkeypatch, number):
    target = tmp_path / "out"
    with atomic_folder(target, marker="m") as scratch:
        (scratch / "m").write_text("old")
    monkeypatch.setattr(atomic, "exchange", lambda first, second: False)  # as where the system cannot
    real, calls = Path.rename, []

    def rename(self, to):
        calls.append(to)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, marker="m") as scratch:
        (scratch / "m").write_text("new")
    assert (target / "m").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
