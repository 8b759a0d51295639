"""`hf-safefilter cache`: what is there, whether it is whole, and making room."""

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from test_recall import SPACE, another_process, recall, same_as_the_model

from hf_safefilter.cache import Space
from hf_safefilter.cache.upkeep import prune, size_of, spaces_in_use
from hf_safefilter.errors import OptionError

OTHER = Space.of({"model": "another"}, "another")


@pytest.fixture
def call(call):
    """The same, with what it says to programs read."""

    def run(*words):
        code, out, err = call("--format", "json", *words)
        return code, json.loads(out or "null"), err

    return run


@pytest.fixture
def filled(store):
    """Three parts of one space, two in layer 1 and one in layer 12, and one of another space."""
    recall(list(range(100)))
    recall(list(range(100, 200)))
    recall(list(range(100)), (12,))
    recall(list(range(150)), space=OTHER)
    another_process()
    return store


def test_ls_says_what_is_there(filled, call):
    code, found, _ = call("cache", "ls")
    assert code == 0 and found["folder"] == str(filled)
    assert [(one["model"], one["layers"], one["parts"], one["note"]) for one in found["spaces"]] == [
        ("made up", "1,12", 3, ""),
        ("another", "1", 1, ""),
    ]
    assert sum(one.size for one in spaces_in_use()) == sum(path.stat().st_size for path in filled.rglob("*.arrow"))


def test_an_empty_store_is_no_error(store, call):
    assert call("cache", "ls")[1]["spaces"] == []
    assert call("cache", "verify")[:2] == (0, {"whole": 0, "damaged": 0, "set aside": []})
    assert call("cache", "prune", "--max-size", "1GB")[1]["removed"] == 0


def test_verify_sets_aside_what_is_damaged(filled, call):
    assert call("cache", "verify")[:2] == (0, {"whole": 4, "damaged": 0, "set aside": []})
    bad = next(SPACE.layer_folder(12).glob("*.arrow"))
    content = bytearray(bad.read_bytes())
    content[-100] ^= 1
    bad.write_bytes(content)
    code, found, _ = call("cache", "verify")
    assert (code, found["whole"], found["set aside"]) == (1, 3, [str(bad)])
    assert call("cache", "ls")[1]["spaces"][0]["damaged"] == 1
    assert call("cache", "verify")[0] == 0
    reading, asked = recall(list(range(100)), (12,))
    same_as_the_model(reading, list(range(100)), (12,))
    assert len(asked) == 100


def test_a_store_of_another_version_is_named_and_left_alone(filled, call):
    """Its facts differ, so its folder has another name: it is neither read nor called damaged."""
    folder = filled / ("ab" * 16)
    (folder / "1").mkdir(parents=True)
    (folder / "space.json").write_text(json.dumps({"label": "made up", "facts": {"format": 99}}))
    (folder / "1" / "part.arrow").write_bytes(b"a format of the future" * 9999)
    _, found, _ = call("cache", "ls")
    assert [one["note"] for one in found["spaces"]] == ["of another version or user", "", ""]
    assert call("cache", "verify")[:2] == (0, {"whole": 4, "damaged": 0, "set aside": []})
    assert not recall(list(range(100)))[1]
    assert (folder / "1" / "part.arrow").exists()


def test_a_space_that_lost_its_description_is_listed_and_may_be_pruned(filled):
    (SPACE.folder / "space.json").write_text("{")
    assert [one.model for one in spaces_in_use()] == ["unknown", "another"]
    assert not recall(list(range(100)))[1], "its rows are whole all the same"
    prune(0)
    assert not spaces_in_use()


def test_prune_takes_the_longest_unused_first(filled):
    parts = sorted(filled.rglob("*.arrow"))
    now = time.time()
    for age, path in enumerate(parts):
        os.utime(path, (now, now - 1000 * age))
    sizes = [path.stat().st_size for path in parts]
    done = prune(sum(sizes[:2]))
    assert [path.exists() for path in parts] == [True, True, False, False]
    assert (done.removed, done.freed, done.left) == (2, sum(sizes[2:]), sum(sizes[:2]))
    assert prune(sum(sizes[:2])).removed == 0


def test_a_part_that_was_used_counts_as_young(filled):
    before = time.time() - 10 * 86_400
    for path in filled.rglob("*.arrow"):
        os.utime(path, (before, before))
    recall(list(range(100)), (12,))
    young = [path for path in filled.rglob("*.arrow") if path.stat().st_mtime > before + 1]
    assert [path.parent.name for path in young] == ["12"]


def test_prune_removes_what_is_useless_first_and_no_write_that_goes_on(filled):
    home = SPACE.layer_folder(1)
    for name, age in {"a.damaged": 0, "old.tmp": 7200, "new.tmp": 60}.items():
        (home / name).write_bytes(b"x" * 1000)
        os.utime(home / name, (time.time() - age,) * 2)
    assert (prune(10**9).removed, len(list(filled.rglob("*.arrow")))) == (2, 4)
    assert (home / "new.tmp").exists()


def test_prune_while_a_job_runs_costs_it_time_not_rows(filled):
    recall(list(range(50)))
    prune(0)
    reading, _ = recall(list(range(300)))
    same_as_the_model(reading, list(range(300)))


def test_links_are_not_followed(filled, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.arrow").write_text("years of work")
    (filled / ("cd" * 16)).symlink_to(tmp_path)
    (SPACE.layer_folder(1) / "link.arrow").symlink_to(tmp_path / "mine" / "thesis.arrow")
    prune(0)
    assert (tmp_path / "mine" / "thesis.arrow").read_text() == "years of work"


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2**31), ("0", 0), ("77", 77), ("9B", 9)]
)
def test_sizes(text, size):
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "five", "-1GB", "5XB", "nan", "inf", "GB"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="is not a size"):
        size_of(text)


def test_prune_asks_for_a_size(store, call):
    assert call("cache", "prune")[0] == 2
    code, _, err = call("cache", "prune", "--max-size", "lots")
    assert code == 2 and "is not a size" in err


@pytest.mark.parametrize(
    ("race", "depth", "turn"),
    [("stat", 1, 1), ("stat", 1, 2), ("stat", 1, 3), ("stat", 2, 1), ("stat", 2, 2), ("stat", 2, 3), ("stat", 3, 1),
     ("stat", 3, 2), ("unlink", 3, 1), ("iterdir", 1, 1), ("iterdir", 1, 2), ("iterdir", 1, 3), ("iterdir", 2, 1),
     ("iterdir", 2, 2)],
)  # fmt: skip
def test_another_process_that_prunes_at_the_same_time_is_no_error(filled, monkeypatch, race, depth, turn):
    """Spaces, layers or parts vanish right before they are asked about for the first, second or third time."""
    real, unlink, counts = getattr(Path, race), Path.unlink, Counter()

    def after_another(self, *args, **options):
        if filled in self.parents and len(self.relative_to(filled).parts) == depth:
            counts[self] += 1
            if counts[self] == turn:
                unlink(self) if os.path.isfile(self) else shutil.rmtree(self, ignore_errors=True)  # noqa: PTH113
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, race, after_another)
        prune(0)
        spaces_in_use()
    assert max(counts.values(), default=0) >= turn, "nothing vanished, so this turn tests nothing"
    assert not [path for path in filled.rglob("*.arrow") if counts[path] >= turn]
