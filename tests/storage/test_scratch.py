"""What a killed process was writing is removed by the next one; what another is writing stays."""

from pathlib import Path

import pytest
from processes import start, wait_until

from hf_safefilter.storage import atomic, scratch
from hf_safefilter.storage.atomic import atomic_folder, atomic_text
from hf_safefilter.storage.exchange import exchange

WRITING = """
import sys, time
from pathlib import Path
from hf_safefilter.storage.atomic import atomic_file, atomic_folder

with {how}(Path({target!r})) as scratch:
    Path({target!r}).with_name("begun").write_text(scratch.name)
    time.sleep(600)
"""
KINDS = [("atomic_file", lambda at: atomic_text(at, "new")), ("atomic_folder", lambda at: folder(at, "new"))]


def folder(at, text):
    with atomic_folder(at, marker="m") as made:
        (made / "m").write_text(text)


@pytest.mark.parametrize(("how", "write"), KINDS)
def test_scratch_of_a_process_that_was_killed_is_removed_and_that_of_a_live_one_is_not(tmp_path, how, write):
    target, begun = tmp_path / "out", tmp_path / "begun"
    job = start(WRITING.format(how=how, target=str(target)))
    wait_until(begun.exists, job)
    left = tmp_path / begun.read_text()
    write(target)
    assert left.exists(), "it is being written"
    job.kill()
    job.wait()
    write(target)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "begun"}


def test_what_is_not_ours_stays(tmp_path):
    names = (".out.tmp", ".out.abcdefgh.tmp", ".out.000000-abcdefgh.tmp", f".outer.{scratch._MACHINE}-abcdefgh.tmp",
             "out.old", ".out.old.abcdefgh")  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    folder(tmp_path / "out", "new")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "out"}


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    left = tmp_path / f".out.{scratch._MACHINE}-abcdefgh.tmp"
    left.mkdir()

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(scratch.fcntl, "flock", no_locks)
        folder(tmp_path / "out", "new")
    assert left.exists()
    folder(tmp_path / "out", "newer")
    assert not left.exists()


def test_scratch_that_another_took_for_abandoned_is_made_again(tmp_path, monkeypatch):
    """Between making and locking, another process may remove it."""
    real, made = scratch.locked, []

    def late(path, *, wait):
        if wait and not made:
            made.append(path)
            path.rmdir()
        return real(path, wait=wait)

    monkeypatch.setattr(scratch, "locked", late)
    folder(tmp_path / "out", "new")
    assert made and (tmp_path / "out" / "m").read_text() == "new"


def test_there_is_no_moment_without_the_old_or_the_new_folder(tmp_path):
    folder(tmp_path / "out", "old")
    folder(tmp_path / "other", "new")
    if not exchange(tmp_path / "out", tmp_path / "other"):
        pytest.skip("this system exchanges no folders")
    assert [(tmp_path / name / "m").read_text() for name in ("out", "other")] == ["new", "old"]
    assert not exchange(tmp_path / "out", tmp_path / "nowhere")


def test_an_old_folder_that_was_moved_aside_is_put_back(tmp_path):
    """Where folders cannot be exchanged, a kill may come between the two renames."""
    aside = tmp_path / f".out.old.{scratch._MACHINE}-abcdefgh.tmp"
    folder(aside / "old", "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out", marker="m"):
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert (tmp_path / "out" / "m").read_text() == "old"


def test_files_that_were_put_there_meanwhile_are_not_replaced(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="would be lost"), atomic_folder(target, marker="m") as made:
        (made / "m").write_text("new")
        target.mkdir()
        (target / "thesis.txt").write_text("It was a dark night.")
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]


def test_two_who_write_one_folder(tmp_path, monkeypatch):
    """The second finds a folder where there was none when it looked."""
    real = atomic.require_replaceable

    def slowly(target, marker):
        real(target, marker)
        if not target.exists():
            target.mkdir()
            monkeypatch.setattr(Path, "exists", lambda self, **_: self != target and self.is_dir())
            (target / "m").write_text("of the other")

    with atomic_folder(tmp_path / "out", marker="m") as made:
        (made / "m").write_text("new")
        monkeypatch.setattr(atomic, "require_replaceable", slowly)
    monkeypatch.undo()
    assert (tmp_path / "out" / "m").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
