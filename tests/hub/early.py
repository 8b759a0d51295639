"""Point every Hub client of this process at a hub of its own, before the first of them is imported.

`huggingface_hub`, `datasets` and `transformers` read the endpoint, the cache folder and the storage protocol from the
environment when they are imported. So the top of ``tests/conftest.py`` is

    from hub import early

    early.start()
    pytest_plugins = ["hub.fixtures"]

and tests take the fixtures ``hub`` (the server, emptied) and ``waits`` (the client's pauses, recorded and skipped).
Processes that a test starts inherit the environment and so the hub. Under pytest-xdist each worker has its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile

from .server import Hub

_CLIENTS = ("huggingface_hub", "datasets", "transformers")
_OVERRIDES = (  # each would win over HF_HOME, or change what a client may do
    "HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_ASSETS_CACHE HF_XET_CACHE HF_TOKEN_PATH HF_STORED_TOKENS_PATH "
    "HF_DATASETS_CACHE HF_MODULES_CACHE HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_DATASETS_OFFLINE HF_SAFEFILTER_CACHE "
    "HF_HUB_DISABLE_IMPLICIT_TOKEN HUGGING_FACE_HUB_TOKEN HUGGINGFACE_CO_STAGING HF_DEBUG "
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy"
).split()

_started: Hub | None = None


def start() -> Hub:
    """This process's hub, started on the first call; the environment is set so that clients find nothing else.

    Raises:
        RuntimeError: a client is imported already, and would go on talking to the real Hub.
    """
    global _started
    if _started is None:
        if late := [name for name in _CLIENTS if name in sys.modules]:
            raise RuntimeError(f"{', '.join(late)} imported before the loopback hub was started")
        _started = Hub()
        _set_environment(_started, _home())
    return _started


def _home() -> str:
    home, owner = tempfile.mkdtemp(prefix="loopback-hub-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child, which leaves through the same exit
            shutil.rmtree(home, ignore_errors=True)

    atexit.register(remove)
    return home


def _set_environment(hub: Hub, home: str) -> None:
    for name in _OVERRIDES:
        os.environ.pop(name, None)
    os.environ.update(
        HF_ENDPOINT=hub.url,
        HF_HOME=home,
        HF_TOKEN=hub.token,
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_UPDATE_CHECK="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        NO_PROXY="127.0.0.1",
    )
