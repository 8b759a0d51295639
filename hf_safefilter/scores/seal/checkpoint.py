"""Checkpoints of a fit on disk: written whole or not at all, verified before use, tensors and JSON only."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import IntegrityError, MissingError, OptionError, SafefilterError
from hf_safefilter.storage import artifacts
from hf_safefilter.storage.atomic import atomic_text

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_KIND, _VERSION = "seal_checkpoint", 1
_FILE = "state.safetensors"
_PREFIX = "step-"
_RESULT = "done.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after `step` steps: the tensors and the plain facts that were saved."""

    step: int
    tensors: dict[str, torch.Tensor]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run; the newest two of them are kept.

    Args:
        folder: A folder for this run alone; None: nothing is saved.
        run: Digest of everything that decides the run; checkpoints of another run are refused.
        seconds: Least number of seconds between two checkpoints.
    """

    def __init__(self, folder: Path | None, run: str, seconds: float) -> None:
        self._folder, self._run, self._seconds = folder, run, seconds
        self._last_save = time.monotonic()

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; a damaged one is skipped with a warning.

        Raises:
            OptionError: The folder belongs to another run.
        """
        for folder in reversed(self._folders()):
            try:
                manifest = artifacts.read(folder, _KIND, _VERSION)
                tensors = _tensors(folder / _FILE)
            except (IntegrityError, MissingError) as error:
                logger.warning("checkpoint %s is skipped: %s", folder.name, error.fact)
                continue
            if manifest.facts["run"] != self._run:
                raise OptionError(
                    f"{self._folder} holds the checkpoints of another run",
                    fix="run it with the same rows, model and options, or choose another folder",
                )
            return Checkpoint(manifest.facts["step"], tensors, manifest.facts["said"])
        return None

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return self._folder is not None and time.monotonic() - self._last_save >= self._seconds

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, then delete all but the newest two.

        Raises:
            SafefilterError: The disk is full; the checkpoints before it are kept.
        """
        if self._folder is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        body = {"run": self._run, "step": step, "said": facts}
        target = self._folder / f"{_PREFIX}{step:08d}"
        try:
            artifacts.write(target, _KIND, _VERSION, body, lambda scratch: save_file(on_cpu, scratch / _FILE))
        except (OSError, SafetensorError) as error:
            raise SafefilterError(
                f"the checkpoint of step {step} could not be written",
                found=str(error),
                fix="free some disk space, then run the same again: it continues from the checkpoint before",
            ) from error
        for old in self._folders()[:-2]:
            shutil.rmtree(old)
        for scratch in self._folder.glob(f".{_PREFIX}*"):  # left by a run that was killed while writing
            shutil.rmtree(scratch, ignore_errors=True)
        self._last_save = time.monotonic()

    def finish(self, digest: str) -> None:
        """Record the digest of the result, and remove the checkpoints of the finished run."""
        if self._folder is None:
            return
        atomic_text(self._folder / _RESULT, json.dumps({"run": self._run, "result": digest}) + "\n")
        for folder in [*self._folders(), *self._folder.glob(f".{_PREFIX}*")]:
            shutil.rmtree(folder, ignore_errors=True)

    def finished(self) -> str | None:
        """Digest of the result, if this very run was finished before."""
        path = self._folder / _RESULT if self._folder is not None else None
        if path is None or not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return str(record["result"]) if record["run"] == self._run else None
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.warning("%s is damaged and is ignored", path)
            return None

    def _folders(self) -> list[Path]:
        """The folders of the checkpoints, the oldest first."""
        return sorted(self._folder.glob(f"{_PREFIX}*")) if self._folder is not None else []


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged", fix="delete it: the checkpoint before it is used") from error
