"""A process that has imported everything, and forks a child for each command that it is told to run.

A command so takes less than a second, and a hundred of them can be killed. Orders and answers are JSON, one a line:
start -> its number; wait -> its exit code (negative: the signal) or "stopped"; go -> a stopped one goes on.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from torture.blows import Blow

_IMPORTED = (
    "matplotlib.pyplot", "PIL.BmpImagePlugin", "rich._emoji_codes", "faiss", "peft",
    "trl.trainer.sft_trainer", "transformers.models.llama.modeling_llama",
    "hf_safefilter.cli", "hf_safefilter.effect.study", "hf_safefilter.locate.search", "hf_safefilter.labeling.rounds",
    "hf_safefilter.pipeline.purify", "hf_safefilter.publish.push", "hf_safefilter.publish.plots",
)  # fmt: skip


def serve() -> None:
    """Answer orders until the input ends."""
    for name in _IMPORTED:
        import_module(name)
    _say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer: Any = _start(order["start"])
        elif "go" in order:
            os.kill(order["go"], signal.SIGCONT)
            answer = order["go"]
        else:
            _, status = os.waitpid(order["wait"], os.WUNTRACED)
            answer = "stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        _say(json.dumps(answer))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _start(job: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = _run(job)
    except BaseException:  # noqa: BLE001  (the parent goes on)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(job: dict[str, Any]) -> int:
    """The exit code of one command, in this process."""
    world, said = Path(job["world"]), Path(job["said"])
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, said / "out", _NEW), (2, said / "err", _NEW)):
        os.dup2(os.open(name, flags), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    os.chdir(world)
    os.environ |= job["environment"]
    _at_home(world)
    if job.get("clock"):
        now = time.time
        time.time = lambda: now() + job["clock"]
    sys.argv = ["hf-safefilter", *job["words"]]
    Blow(world, said / "steps", job["blow"]).start()
    for name, most in job["limits"].items():
        most = most if most >= 0 else _used(name) - most
        resource.setrlimit(getattr(resource, name), (most, most))
    from hf_safefilter.cli import main

    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    atexit._run_exitfuncs()  # what Python does when a process ends by itself
    return code


_NEW = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def _used(limit: str) -> int:
    """Handles of files that this process has, or bytes of address space."""
    if limit == "RLIMIT_NOFILE":
        return max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _at_home(world: Path) -> None:
    """The caches of the libraries lie in the world; they have read the environment already."""
    from datasets import config

    tempfile.tempdir = str(world / "tmp")
    config.HF_DATASETS_CACHE = world / "home" / "datasets"
    config.DOWNLOADED_DATASETS_PATH = config.HF_DATASETS_CACHE / "downloads"
    config.EXTRACTED_DATASETS_PATH = config.DOWNLOADED_DATASETS_PATH / "extracted"


if __name__ == "__main__":
    serve()
