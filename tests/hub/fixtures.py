"""The fixtures of the loopback hub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from . import early
from .server import Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    """This process's hub, without repositories, faults or log. A fault that never happened fails the test."""
    from huggingface_hub import HfFileSystem

    server = early.start()
    server.reset()
    HfFileSystem.clear_instance_cache()  # its listings are of repositories that another test had
    yield server
    pending = server.faults.pending()
    server.reset()
    assert not pending, f"announced but never met by a request: {pending}"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that huggingface_hub would have paused between its own attempts; it does not pause."""
    from huggingface_hub.utils import _http

    asked: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(**vars(time) | {"sleep": asked.append}))
    return asked
