"""Commands that are stopped at a step on disk, and run again: the same result, nothing lost, nothing left behind.

Twenty kills, the same each time; or TORTURE=100 of them, at other steps (`make torture`).
"""

import os
import random
import signal

import pytest

from torture.world import COMMANDS, content

KILLS = int(os.environ.get("TORTURE", "20"))
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
EXIT = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}

pytestmark = pytest.mark.xdist_group("torture")


def cases():
    """(command, signal, seed), each command as often as the others."""
    names = list(COMMANDS)
    for number in range(KILLS):
        name, turn = names[number % len(names)], number // len(names)
        yield name, SIGNALS[(number + turn) % len(SIGNALS)], number


def on_the_hub(hub):
    """What a data set repository holds, and in how many commits; None before there is one."""
    if ("datasets", "loopback/rows") not in hub.repos:
        return None
    repo = hub.repo("loopback/rows")
    return len(repo.history()), repo.files()


@pytest.fixture
def undisturbed(worlds, hub):
    """A function from the name of a command to its world, how it ended, and what is on the Hub then."""

    def run(name):
        if name == "push":
            world = worlds.new(name)
            ended, there = world.run(COMMANDS[name]), on_the_hub(hub)
            hub.reset()
            return world, ended, there
        return *worlds.undisturbed(name), None

    return run


@pytest.mark.parametrize(("name", "kind", "seed"), list(cases()))
def test_killed_and_run_again(worlds, world, undisturbed, hub, name, kind, seed):
    whole, ended, there = undisturbed(name)
    assert ended.code in (0, 3), ended.err
    at = random.Random(seed).randint(1, len(ended.steps))
    here, step = world(name), f"step {at}: {ended.steps[at - 1]}"
    killed = here.run(COMMANDS[name], {"at": at, "action": kind})
    out, earlier = here.folder / "out", worlds.earlier(name)
    # once all is written, what is left is what Python does at the end of a process, and there a signal says nothing
    over = killed.code in (0, -signal.SIGTERM) and content(out) == content(whole.folder / "out")
    assert killed.code == EXIT[kind] or over, (step, killed.code, killed.err)
    if earlier is not None:
        assert content(out) in (earlier, content(whole.folder / "out")), step
    if there is not None:
        now = on_the_hub(hub)
        assert now in (None, there) or set(now[1]) <= {".gitattributes"}, step
    if kind != "SIGKILL" and not over:
        assert "Traceback" not in killed.err and "stopped; finished work is kept" in killed.err, (step, killed.err)
        assert not [path for path in here.paths() if path.endswith(".tmp")], step
    again = here.run(COMMANDS[name])
    assert again.code == ended.code, (step, again.err)
    assert here.paths() == whole.paths(), step
    if out.exists():
        assert content(out) == content(whole.folder / "out"), step
    if there is not None:
        assert on_the_hub(hub) == there
    assert (here.folder / "store" / "signing.key").read_bytes() == (whole.folder / "store" / "signing.key").read_bytes()
