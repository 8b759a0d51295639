"""What happens to a command at one of its steps on disk: a signal, an error of the system, or a change of its files.

Steps are counted, not timed: opening a file to write, making, renaming, linking and deleting, fsync, and requests to
the Hub. So a seed names the same moment on every machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_MAKES = ("open", "os.mkdir", "os.rename", "os.link", "os.fsync", "os.truncate")
"""Steps for which a disk needs room."""
_EVENTS = (*_MAKES, "os.remove", "os.rmdir", "send")


class Blow:
    """An audit hook that numbers the steps of a process in a folder, writes each down, and acts at one or from it on.

    Args:
        world: The folder; steps elsewhere are not counted.
        log: File to which the name of each step is appended before it is taken.
        plan: "at": number of the step, from 1; "action": "SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP", "fail" (with
            "error", an errno, from then on for all steps under "under" that need room, or for all with "every") or
            "alter" (with "files": target -> what is copied over it, its time kept).
    """

    def __init__(self, world: Path, log: Path, plan: Mapping[str, Any]) -> None:
        self._world, self._plan = str(world), plan
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = count(1)
        self._busy = threading.local()
        self._under = str(world / plan.get("under", "."))

    def start(self) -> None:
        """From now on, this process is watched."""
        import httpx2

        real_fsync, real_send = os.fsync, httpx2.Client.send

        def fsync(handle: int) -> None:
            self("os.fsync", (str(Path(f"/proc/self/fd/{handle}").readlink()),))
            real_fsync(handle)

        def send(client: httpx2.Client, request: httpx2.Request, **options: Any) -> httpx2.Response:
            self("send", (f"{self._world}/{request.method}{request.url.path}",))
            return real_send(client, request, **options)

        os.fsync, httpx2.Client.send = fsync, send  # type: ignore[method-assign]
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Called by Python before each step."""
        if getattr(self._busy, "here", False) or event not in _EVENTS:
            return
        if event == "open" and (not isinstance(args[2], int) or not args[2] & _WRITES):
            return
        path = args[1] if event in ("os.rename", "os.link") else args[0]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        path = str(Path(os.fsdecode(path)).absolute())
        if not path.startswith(self._world):
            return
        self._busy.here = True
        try:
            number = next(self._numbers)
            with suppress(OSError):  # where no file may grow, that of the steps may not either
                os.write(self._log, f"{event} {path[len(self._world) + 1 :]}\n".encode(errors="replace"))
            self._act(number, event, path)
        finally:
            self._busy.here = False

    def _act(self, number: int, event: str, path: str) -> None:
        at, action = self._plan.get("at"), self._plan.get("action")
        if at is None or number < at:
            return
        if action == "fail":
            if path.startswith(self._under) and (event in _MAKES or self._plan.get("every")):
                raise OSError(self._plan["error"], os.strerror(self._plan["error"]), path)
        elif number == at and action == "alter":
            for target, source in self._plan["files"].items():
                alter(Path(target), Path(source))
        elif number == at:
            os.kill(os.getpid(), getattr(signal, str(action)))


def alter(target: Path, source: Path) -> None:
    """Replace what a file holds, in place, and keep its time of modification."""
    times = target.stat()
    with target.open("r+b") as stream, source.open("rb") as other:
        shutil.copyfileobj(other, stream)
        stream.truncate()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
