"""Finished runs on disk: each is written whole when it ends, and not done again while its inputs stay the same."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.effect.measures import Measured
from hf_safefilter.errors import OptionError
from hf_safefilter.storage.atomic import atomic_text

logger = logging.getLogger(__name__)

INPUTS = "inputs.json"
"""What the study in a folder is made from, and the file by which its output is known."""


@dataclass(frozen=True, slots=True)
class Run:
    """One model, tuned and asked.

    Attributes:
        arm: name of the arm, or "before".
        seed: of the run.
        rows: how many different rows it was tuned on.
        steps: of the optimizer.
        mean_length: tokens of an average response it was tuned on.
        losses: of the first and the last step; empty before tuning.
        measured: what it did when asked.
        seconds: what that took.
    """

    arm: str
    seed: int
    rows: int
    steps: int
    mean_length: float
    losses: tuple[float, ...]
    measured: Measured
    seconds: float


def digest_of(inputs: Any) -> str:
    """``sha256:`` over the canonical JSON of plain values."""
    body = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=list)
    return "sha256:" + hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """The runs in an output folder.

    Raises:
        OptionError: the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OptionError(f"{folder} is there and is not a folder", fix="choose another output")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / INPUTS).is_file():
            raise OptionError(f"{folder} holds other files", fix="choose another output folder")
        self._folder = folder

    def open(self, inputs: Mapping[str, Any]) -> None:
        """Say what the study is made from; says in the log what has changed since it was last run here."""
        path = self._folder / INPUTS
        before = _read(path) if path.is_file() else None
        plain = json.loads(json.dumps(inputs, default=list))
        if before is not None and before != plain:
            changed = sorted(name for name in {*before, *plain} if before.get(name) != plain.get(name))
            logger.warning(
                "%s was made from other inputs (%s): runs that depend on them are done anew",
                self._folder, ", ".join(f"{name}: {_short(before.get(name))} -> {_short(plain.get(name))}"
                                        for name in changed),
            )  # fmt: skip
        atomic_text(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")

    def find(self, arm: str, seed: int, digest: str) -> Run | None:
        """The finished run with these inputs, or None; a damaged file counts as not done."""
        path = self._path(arm, seed)
        body = _read(path) if path.is_file() else None
        if body is None or body.get("inputs") != digest:
            return None
        try:
            values = dict(body["run"])
            return Run(
                **values | {"measured": Measured.from_json(values["measured"]), "losses": tuple(values["losses"])}
            )
        except (KeyError, TypeError, ValueError):
            logger.warning("%s is damaged; that run is done again", path)
            return None

    def write(self, run: Run, digest: str) -> None:
        """Keep a finished run: a reader sees all of it or nothing."""
        values = {name: getattr(run, name) for name in Run.__slots__} | {"measured": run.measured.to_json()}
        atomic_text(self._path(run.arm, run.seed), json.dumps({"inputs": digest, "run": values}, indent=1) + "\n")

    def _path(self, arm: str, seed: int) -> Path:
        return self._folder / "runs" / f"{arm}-seed{seed}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        logger.warning("%s cannot be read and is written anew", path)
        return None
    return body if isinstance(body, dict) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
