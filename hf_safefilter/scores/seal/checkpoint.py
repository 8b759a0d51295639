"""Where a run stands, on disk: written whole or not at all, verified before it is used, tensors and JSON only."""

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
_DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Standing:
    """A run after `step` steps: the tensors and the plain facts that were saved."""

    step: int
    tensors: dict[str, torch.Tensor]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, the newest two of them kept.

    Args:
        folder: theirs alone; None: nothing is saved.
        run: digest of all that decides the run; another run's checkpoints are refused.
        seconds: least time between two.
    """

    def __init__(self, folder: Path | None, run: str, seconds: float) -> None:
        self._folder, self._run, self._seconds = folder, run, seconds
        self._last = time.monotonic()

    def latest(self) -> Standing | None:
        """The newest checkpoint that is whole; a damaged one is reported and passed over.

        Raises:
            OptionError: the folder belongs to another run.
        """
        for place in reversed(self._places()):
            try:
                manifest = artifacts.read(place, _KIND, _VERSION)
                tensors = _tensors(place / _FILE)
            except (IntegrityError, MissingError) as error:
                logger.warning("checkpoint %s is passed over: %s", place.name, error.fact)
                continue
            if manifest.facts["run"] != self._run:
                raise OptionError(
                    f"{self._folder} holds the checkpoints of another run",
                    fix="run it with the same rows, model and options, or choose another folder",
                )
            return Standing(manifest.facts["step"], tensors, manifest.facts["said"])
        return None

    def due(self) -> bool:
        """Whether the last one is old enough for another."""
        return self._folder is not None and time.monotonic() - self._last >= self._seconds

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], said: Mapping[str, Any]) -> None:
        """Write a checkpoint, then drop all but the newest two.

        Raises:
            SafefilterError: no room; the checkpoints before it are kept.
        """
        if self._folder is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        held = {name: one.detach().to("cpu").contiguous() for name, one in tensors.items()}
        facts = {"run": self._run, "step": step, "said": said}
        target = self._folder / f"{_PREFIX}{step:08d}"
        try:
            artifacts.write(target, _KIND, _VERSION, facts, lambda scratch: save_file(held, scratch / _FILE))
        except (OSError, SafetensorError) as error:
            raise SafefilterError(
                f"the checkpoint of step {step} could not be written",
                found=str(error),
                fix="make room for it, then run the same again: it goes on from the checkpoint before",
            ) from error
        for old in self._places()[:-2]:
            shutil.rmtree(old)
        for scratch in self._folder.glob(f".{_PREFIX}*"):  # what a killed run was writing
            shutil.rmtree(scratch, ignore_errors=True)
        self._last = time.monotonic()

    def finish(self, digest: str) -> None:
        """Remove the checkpoints: the run is done, and all that stays is where its result is kept."""
        if self._folder is None:
            return
        atomic_text(self._folder / _DONE, json.dumps({"run": self._run, "result": digest}) + "\n")
        for place in [*self._places(), *self._folder.glob(f".{_PREFIX}*")]:
            shutil.rmtree(place, ignore_errors=True)

    def finished(self) -> str | None:
        """Digest of the result, if this very run was done before."""
        path = self._folder / _DONE if self._folder is not None else None
        if path is None or not path.is_file():
            return None
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return str(said["result"]) if said["run"] == self._run else None
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged and passed over", path)
            return None

    def _places(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*")) if self._folder is not None else []


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is damaged", fix="the checkpoint before it is used") from error
