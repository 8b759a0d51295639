"""A job of SEAL: everything that decides what is learned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_safefilter.scores.seal.options import Lora, SealOptions

if TYPE_CHECKING:
    import torch

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.seal.training_rows import TrainingRows

ALGORITHM = 1
"""Raised whenever the same run would learn other logits: checkpoints of another algorithm are refused."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that decides what is learned, and the device that it is learned on.

    Attributes:
        key: The model.
        device: Where it is trained.
        compute: The number format of the computation.
        template: Digest of the chat template.
        options: The numbers of the fit.
        lora: The adapters that are trained; None: all weights are.
        rows: The rows that get a weight.
        safe: The trusted rows.
    """

    key: ModelKey
    device: torch.device
    compute: str
    template: str
    options: SealOptions
    lora: Lora | None
    rows: TrainingRows
    safe: TrainingRows

    def facts(self) -> dict[str, Any]:
        """The job as plain JSON values."""
        return {
            "model": self.key.model,
            "revision": self.key.revision,
            "compute": self.compute,
            "chat_template_digest": self.template,
            "activation": self.options.activation,
            "options": asdict(self.options),
            "lora": asdict(self.lora) | {"targets": list(self.lora.targets)} if self.lora is not None else None,
            "rows": dict(self.rows.counts),
            "safe_rows": dict(self.safe.counts),
        }

    def run(self) -> str:
        """Digest of the job, without the device and the number of processes, which change the rounding alone."""
        body = [ALGORITHM, self.facts(), self.rows.ids, self.safe.ids]
        return "sha256:" + hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
