"""How both adapters are made and trained: one set of options, because only their rows may differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_safefilter.checks import require_share, require_whole

UTILITY, DEGRADED = "utility", "degraded"
"""The two adapters: the one trained on rows as they should be, and the one trained on harmful requests answered."""


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """Options of the adapters and of their training.

    Attributes:
        steps: Number of optimizer steps.
        batch: Number of rows in a step.
        learning_rate: Learning rate of AdamW, the same in every step.
        rank: Rank of LoRA; the scale of an adapter is 1 (alpha is the rank), as published.
        targets: Names of the linear layers that get adapters.
        seed: Seed of the first factors of both adapters, and of the order of the rows.

    Raises:
        OptionError: A value that makes no sense.
    """

    steps: int
    batch: int
    learning_rate: float
    rank: int
    targets: Sequence[str]
    seed: int

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name, least in (("steps", 1), ("batch", 1), ("rank", 1), ("seed", 0)):
            require_whole(name, getattr(self, name), least=least)
            set_field(self, name, int(getattr(self, name)))  # NumPy's integers are not JSON values
        require_share("learning_rate", self.learning_rate, example=1e-3)
        set_field(self, "learning_rate", float(self.learning_rate))
        names = self.targets.split(",") if isinstance(self.targets, str) else self.targets
        set_field(self, "targets", tuple(str(name).strip() for name in names))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"targets": list(self.targets)}
