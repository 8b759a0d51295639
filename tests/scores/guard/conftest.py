"""A guard that has learned its verdicts, and a server of it."""

import pytest
from chat_server import ChatServer
from guards import save_taught_guard
from stand_in import safe_rows, unsafe_rows

from hf_safefilter import cache
from hf_safefilter.cache import SWITCH
from hf_safefilter.cache import store as stores
from hf_safefilter.scores.guard import asking, endpoint


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """Folder of a guard that writes ``unsafe`` or ``safe`` after two line breaks."""
    return save_taught_guard(tmp_path_factory.mktemp("taught") / "guard", unsafe_rows(16), safe_rows(16))


@pytest.fixture(scope="session")
def one_server(taught):
    server = ChatServer(taught)
    yield server
    server.close()


@pytest.fixture
def server(one_server, monkeypatch):
    """The server as it was, and a client that does not pause between tries."""
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.0)
    monkeypatch.delenv(endpoint.KEY, raising=False)
    endpoint._client.cache_clear()
    asking._warn_of_sending.cache_clear()
    asking._spent.clear()
    one_server.reset()
    return one_server


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A row cache of its own; called, it is as another process finds it."""
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv(SWITCH, "on")
    stores._open.clear()
    cache.lookup._pace.cache_clear()

    def reopen():
        cache.flush()
        stores._open.clear()

    yield reopen
    stores._open.clear()
