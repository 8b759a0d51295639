"""One prepared folder for all tests of this process."""

import shutil

import pytest

from torture.world import Worlds


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    made = Worlds(tmp_path_factory.mktemp("torture"))
    yield made
    made.zygote.close()


@pytest.fixture
def world(worlds):
    """A function from the name of a command to a world of its own, deleted after the test."""
    made = []

    def new(name=""):
        made.append(worlds.new(name))
        return made[-1]

    yield new
    for one in made:
        shutil.rmtree(one.folder)
