"""Measurements of this machine, remembered so that a second run rounds exactly as the first one did.

The layout of weights is chosen by speed. Each layout rounds differently in the last bit, so digests of references or
fitted scores would change from run to run with the load of the machine if it were measured every time.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from hf_safefilter.checks import is_whole
from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.storage.atomic import atomic_text

logger = logging.getLogger(__name__)

FILE = "measured.json"


def remembered(question: str, measure: Callable[[], int]) -> int:
    """The answer that was measured first, by any process of this user on a machine of this name.

    Args:
        question: Everything that the answer depends on, except the machine and the version of torch.
        measure: Called if there is no answer yet. Delete the file to measure everything again.
    """
    path = store_root() / FILE
    key = f"{question}; torch {torch.__version__}; {os.cpu_count()} processors of {platform.node()}"
    if key not in (answers := _read(path)):
        answers = {key: measure()} | _read(path)  # an answer that another process wrote in the meantime wins
        try:
            atomic_text(path, json.dumps(answers, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            logger.debug("%s cannot be written (%s): it will be measured again next time", path, error)
    return answers[key]


def _read(path: Path) -> dict[str, int]:
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(answers, dict):
        return {}
    return {str(question): answer for question, answer in answers.items() if is_whole(answer)}
