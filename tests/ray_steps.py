"""Steps of these tests: workers of Ray find them by the name of this module."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class Deadly(Step):
    """Kills its process with SIGKILL at the batch with the row `prompt`, `times` times; counts them in `folder`."""

    folder: str
    prompt: str
    times: int = 1
    algorithm: int = field(default=1, init=False)

    def produces(self) -> tuple[str, ...]:
        return ("batch_size",)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        deaths = len(list(Path(self.folder).iterdir()))
        if deaths < self.times and self.prompt in batch.cells("prompt"):
            Path(self.folder, str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"batch_size": np.full(batch.n, batch.n, np.int64)}


@dataclass(frozen=True, slots=True)
class RowIds(Step):
    """Ids alone, which take no model."""

    algorithm: int = field(default=1, init=False)

    def produces(self) -> tuple[str, ...]:
        return ("row_id",)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        return {"row_id": np.array([row_id(one) for one in conversations(batch)], dtype=object)}
