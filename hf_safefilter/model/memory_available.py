"""How much memory a device has free: what decides whether a model is held in it or read block by block."""

from __future__ import annotations

from pathlib import Path

import torch

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def memory_available(device: torch.device) -> int | None:
    """Bytes that can be taken on `device`; None where it cannot be known.

    Of this machine's memory: what the system counts as available, and what a control group (as of a container) leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    return min((free for free in (_of_system(), _of_group()) if free is not None), default=None)


def _of_system() -> int | None:
    try:
        lines = _SYSTEM.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _of_group() -> int | None:
    try:
        limit = (_GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        facts = dict(line.split() for line in (_GROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    # pages of files that nobody uses are given back when memory is asked for
    return None if limit == "max" else max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
