"""Which of a model's parameters a gradient is taken of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hf_safefilter.errors import OptionError

PARTS = ("all", "last_blocks", "lora")


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parameters count.

    Attributes:
        kind: "all"; "last_blocks", the parameters of the last blocks; or "lora", those of fresh LoRA adapters, of
            which the second factor is zero, so that it alone has a gradient.
        blocks: how many of the last blocks.
        rank: of the adapters; their scale is 4 (alpha 32 at rank 8, as LESS has it).
        targets: names of the linear layers that get adapters.
        seed: of the adapters' first factors.
    """

    kind: str = "all"
    blocks: int = 1
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.kind not in PARTS:
            raise OptionError(f"parts={self.kind!r} is not known", fix=f"use one of {', '.join(PARTS)}")
        for name in ("blocks", "rank"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise OptionError(
                    f"{name}={getattr(self, name)!r} is not a number of them", fix=f"use {name}=1 or more"
                )
        if type(self.seed) is not int:
            raise OptionError(f"seed={self.seed!r} is not a whole number", fix="use for example seed=0")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"targets": list(self.targets)}
