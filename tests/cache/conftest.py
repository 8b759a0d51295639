"""The row cache turned on, in a store of the test's own."""

import pytest

from hf_safefilter.cache import SWITCH
from hf_safefilter.cache import store as stores


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Folder of the row cache, empty."""
    monkeypatch.setenv(SWITCH, "on")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    yield tmp_path / "store" / "rows"
    stores._open.clear()
