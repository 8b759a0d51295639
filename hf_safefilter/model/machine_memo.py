"""What was measured on this machine, and holds from then on: a second run must round as the first one did.

How weights are laid out is picked by what is fastest. Each way rounds differently in the last bit, and digests
of references or fitted scores would change from run to run with the load of the machine.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.storage.atomic import atomic_text

logger = logging.getLogger(__name__)

FILE = "measured.json"


def remembered(question: str, measure: Callable[[], int]) -> int:
    """The answer that was measured first, by this or another process of this user on a machine of this name.

    Args:
        question: all that the answer depends on, but for machine and torch.
        measure: is called if nobody has asked yet. Delete the file to have everything measured anew.
    """
    path = store_root() / FILE
    asked = f"{question}; torch {torch.__version__}; {os.cpu_count()} processors of {platform.node()}"
    if asked not in (known := _read(path)):
        known = {asked: measure()} | _read(path)  # whoever was faster is right
        try:
            atomic_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            logger.debug("%s cannot be written (%s): measured again next time", path, error)
    return known[asked]


def _read(path: Path) -> dict[str, int]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): value for name, value in known.items() if type(value) is int} if type(known) is dict else {}
