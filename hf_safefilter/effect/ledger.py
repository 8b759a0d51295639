"""Finished runs on disk: each is written when it ends, and reused as long as its inputs stay the same."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.effect.measures import Measurements
from hf_safefilter.errors import OptionError
from hf_safefilter.storage.atomic import atomic_text

logger = logging.getLogger(__name__)

INPUTS = "inputs.json"
"""File with the inputs of the study in a folder; a folder without it is not an output folder."""


@dataclass(frozen=True, slots=True)
class Run:
    """One model, tuned on an arm with a seed and then measured.

    Attributes:
        arm: Name of the arm, or "before" for the untuned model.
        seed: Seed of the run.
        rows: Number of different rows that the model was tuned on.
        steps: Number of optimizer steps.
        mean_length: Mean length of the responses of these rows, in tokens.
        losses: Losses of the first and of the last step; empty for the untuned model.
        measured: Measurements of the model.
        seconds: Duration of the run.
    """

    arm: str
    seed: int
    rows: int
    steps: int
    mean_length: float
    losses: tuple[float, ...]
    measured: Measurements
    seconds: float


def digest_of(inputs: Any) -> str:
    """Digest ``sha256:...`` over the canonical JSON of plain values."""
    body = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=list)
    return "sha256:" + hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """The finished runs in an output folder.

    Raises:
        OptionError: The path is not a folder, or the folder holds other files.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OptionError(f"{folder} exists and is not a folder", fix="choose another output folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / INPUTS).is_file():
            raise OptionError(f"{folder} holds other files", fix="choose another output folder")
        self._folder = folder

    def open(self, inputs: Mapping[str, Any]) -> None:
        """Write the inputs of the study, and log what has changed since the study last ran in this folder."""
        path = self._folder / INPUTS
        before = _read(path) if path.is_file() else None
        plain = json.loads(json.dumps(inputs, default=list))
        if before is not None and before != plain:
            changed = sorted(name for name in {*before, *plain} if before.get(name) != plain.get(name))
            logger.warning(
                "%s was made from other inputs (%s): runs that depend on them are repeated",
                self._folder, ", ".join(f"{name}: {_short(before.get(name))} -> {_short(plain.get(name))}"
                                        for name in changed),
            )  # fmt: skip
        atomic_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")

    def find(self, arm: str, seed: int, digest: str) -> Run | None:
        """The finished run with these inputs, or None if there is none or its file is damaged."""
        path = self._path(arm, seed)
        body = _read(path) if path.is_file() else None
        if body is None or body.get("inputs") != digest:
            return None
        try:
            values = dict(body["run"])
            return Run(
                **values | {"measured": Measurements.from_json(values["measured"]), "losses": tuple(values["losses"])}
            )
        except (KeyError, TypeError, ValueError):
            logger.warning("%s is damaged; this run is repeated", path)
            return None

    def write(self, run: Run, digest: str) -> None:
        """Write a finished run; a reader sees all of it or nothing."""
        values = {name: getattr(run, name) for name in Run.__slots__} | {"measured": run.measured.to_json()}
        atomic_text(self._path(run.arm, run.seed), json.dumps({"inputs": digest, "run": values}, indent=1) + "\n")

    def _path(self, arm: str, seed: int) -> Path:
        return self._folder / "runs" / f"{arm}-seed{seed}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        logger.warning("%s cannot be read and will be written again", path)
        return None
    return body if isinstance(body, dict) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
