"""Python code in processes of its own, which may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent

HANG = 1200
"""Seconds that only a process that hangs takes, on however slow a machine."""


def start(code: str, **environment: str) -> subprocess.Popen:
    """Start `code`; ask `answer` for what it prints, or kill it."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    there = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=there, **pipes)


def answer(process: subprocess.Popen, timeout: float = HANG) -> Any:
    """The JSON on the last line of what the process printed; it must end well."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Return once `happened()` is true; the process must still be running then."""
    begin = time.monotonic()
    while not happened():
        assert process.poll() is None, f"it ended before that: {process.communicate()[1]}"
        assert time.monotonic() - begin < HANG, "it hangs"
        time.sleep(0.02)
    assert process.poll() is None
