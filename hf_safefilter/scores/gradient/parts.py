"""The parameters of a model whose gradient is taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hf_safefilter.checks import require_choice, require_whole

PARTS = ("all", "last_blocks", "lora")


@dataclass(frozen=True, slots=True)
class Parts:
    """A choice of parameters.

    Attributes:
        kind: "all"; "last_blocks", the parameters of the last blocks; or "lora", those of fresh LoRA adapters, of
            which only the second factor has a gradient, because it starts at zero.
        blocks: Number of last blocks, for "last_blocks".
        rank: Rank of the adapters; their scale is 4 (alpha 32 at rank 8, as in LESS).
        targets: Names of the linear layers that get adapters.
        seed: Seed of the adapters' first factors.
    """

    kind: str = "all"
    blocks: int = 1
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("parts", self.kind, PARTS)
        require_whole("blocks", self.blocks, least=1)
        require_whole("rank", self.rank, least=1)
        require_whole("seed", self.seed)
        set_field = object.__setattr__
        set_field(self, "targets", tuple(self.targets))
        for name in ("blocks", "rank", "seed"):
            set_field(self, name, int(getattr(self, name)))  # NumPy's integers are not JSON values

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"targets": list(self.targets)}
