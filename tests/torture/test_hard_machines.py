"""Machines on which something is short, wrong or shared: a sentence or the right result, and then the right result.

With TORTURE=100, a full disk comes at more steps.
"""

import errno
import random

import pytest

from torture.test_kills import KILLS
from torture.world import COMMANDS, content

pytestmark = pytest.mark.xdist_group("torture")

LIGHT = ("embed", "by block", "reference", "seal", "locate", "merge", "label")
BACK = -10 * 365 * 86_400  # seconds


def ended_well_or_in_words(ended):
    assert ended.code in (0, 1, 3), ended.err
    assert "Traceback" not in ended.err and "HF_SAFEFILTER_DEBUG" not in ended.err, ended.err
    assert ended.code != 1 or "fix: " in ended.err


def bytes_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def right_when_run_again(worlds, here, name):
    """The same command on a machine that is well gives what it gives undisturbed, and nothing else is there."""
    whole, ended = worlds.undisturbed(name)
    again = here.run(COMMANDS[name])
    assert again.code == ended.code, again.err
    assert here.paths() == whole.paths()
    if (whole.folder / "out").exists():
        assert content(here.folder / "out") == content(whole.folder / "out")


@pytest.mark.parametrize("turn", range(max(1, KILLS // 20)))
@pytest.mark.parametrize("name", LIGHT)
def test_a_disk_that_fills_up_or_breaks_at_a_step(worlds, world, name, turn):
    whole, ended = worlds.undisturbed(name)
    random_one = random.Random(f"{name}{turn}")
    makes = [n for n, step in enumerate(ended.steps, 1) if not step.startswith(("os.remove", "os.rmdir"))]
    at, error = random_one.choice(makes), (errno.ENOSPC, errno.EIO)[turn % 2]
    here = world(name)
    full = here.run(COMMANDS[name], {"at": at, "action": "fail", "error": error})
    ended_well_or_in_words(full)
    assert not [path for path in here.paths() if path.endswith(".tmp")], ended.steps[at - 1]
    earlier, out = worlds.earlier(name), here.folder / "out"
    assert earlier is None or content(out) in (earlier, content(whole.folder / "out"))
    right_when_run_again(worlds, here, name)


@pytest.mark.parametrize("name", ["embed", "by block", "label", "merge", "locate", "prune"])
def test_a_store_that_may_not_be_written(worlds, world, name):
    """Rows are read without a cache; what must be kept in the store is refused in words."""
    here = world(name)
    before = bytes_in(here.folder / "store")
    blow = {"at": 1, "action": "fail", "error": errno.EROFS, "under": "store", "every": True}
    ended = here.run(COMMANDS[name], blow)
    ended_well_or_in_words(ended)
    assert ended.code == (1 if name in ("label", "prune") else 0), ended.err
    assert bytes_in(here.folder / "store") == before
    right_when_run_again(worlds, here, name)


@pytest.mark.parametrize(
    ("name", "free"), [("embed", 3), ("embed", 5), ("by block", 5), ("reference", 4), ("merge", 3), ("label", 4)]
)
def test_few_file_descriptors(worlds, world, name, free):
    here = world(name)
    ended_well_or_in_words(here.run(COMMANDS[name], limits={"RLIMIT_NOFILE": -free}))
    right_when_run_again(worlds, here, name)


@pytest.mark.parametrize(("name", "free"), [("embed", 5), ("embed", 30), ("merge", 5), ("locate", 30)])
def test_little_memory(worlds, world, name, free):
    """The free megabytes. Where a library aborts the process instead of saying so, that is not ours to mend."""
    here = world(name)
    ended = here.run(COMMANDS[name], limits={"RLIMIT_AS": -free * 2**20})
    if ended.code >= 0 and "memory allocation of" not in ended.err and "thread-local data" not in ended.err:
        ended_well_or_in_words(ended)
        assert ended.code == 0 or "memory" in ended.err, ended.err
    right_when_run_again(worlds, here, name)


@pytest.mark.parametrize(("name", "most"), [("embed", 3000), ("by block", 3000), ("merge", 3000), ("seal", 30_000)])
def test_files_that_may_not_grow(worlds, world, name, most):
    here = world(name)
    ended = here.run(COMMANDS[name], limits={"RLIMIT_FSIZE": most})
    ended_well_or_in_words(ended)
    assert ended.code == 1 and ("a disk is full, or a file may not grow" in ended.err or "File too large" in ended.err)
    right_when_run_again(worlds, here, name)


@pytest.mark.parametrize("name", ["embed", "by block", "merge", "prune", "label", "seal"])
def test_a_clock_that_was_set_back(worlds, world, name):
    """By ten years: what is in the store is of the future then; and forward again."""
    here = world(name)
    killed = here.run(COMMANDS[name], {"at": 2, "action": "SIGKILL"})
    assert killed.code == -9
    ended = here.run(COMMANDS[name], clock=BACK)
    assert ended.code in (0, 3), ended.err
    right_when_run_again(worlds, here, name)


@pytest.mark.parametrize("turn", range(max(1, KILLS // 20)))
@pytest.mark.parametrize(("name", "output"), [("embed", "out"), ("embed", "other"), ("by block", "out"),
                                              ("reference", "out"), ("merge", "out"), ("label", "other")])  # fmt: skip
def test_two_processes_on_one_store(worlds, world, name, output, turn):
    """One is halted at a step, the other runs from beginning to end, into the same folder or another."""
    whole, ended = worlds.undisturbed(name)
    # while one copies a file's rows into the cache of `datasets`, the other waits for them, and says so
    free = [n for n, step in enumerate(ended.steps, 1) if " home/datasets/" not in step]
    here, at = world(name), random.Random(f"two {name}{output}{turn}").choice(free)
    first = here.start(COMMANDS[name], {"at": at, "action": "SIGSTOP"})
    assert here.zygote.ask({"wait": first[0]}) == "stopped"
    second = here.run((*COMMANDS[name][:-1], output))
    here.zygote.ask({"go": first[0]})
    over = here.end(first)
    assert (over.code, second.code) == (0, 0), (ended.steps[at - 1], over.err, second.err)
    expected = content(whole.folder / "out")
    assert content(here.folder / "out") == expected == content(here.folder / output)
    assert not [path for path in here.paths() if path.endswith(".tmp")]
