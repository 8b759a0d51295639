"""Controls: scores that any method must beat. Every report shows them beside the methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.checks import require_whole
from hf_safefilter.columns import ROW_ID, UNSCORABLE
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import answered_text, conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.scores.base import Score
from hf_safefilter.step import Step

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LengthScore(Score):
    """Characters in the answers. Unsafe answers are often longer than refusals, so a score may measure only length.

    Args:
        columns: Columns of prompt and response, for rows of no known shape.
    """

    METHOD: ClassVar[str] = "length"
    MEASURES: ClassVar[str] = "control: characters in the answers"
    REQUIRES: ClassVar[str] = "nothing"

    columns: Mapping[str, str] | Pairs | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,); NaN for a row without a readable response."""
        rows = conversations(batch, dict(self.columns) if self.columns else None)
        sizes = [np.nan if row.reason else len(answered_text(row)) for row in rows]
        return {self.produces()[0]: np.array(sizes, dtype=np.float32)}


@dataclass(frozen=True, slots=True)
class RandomScore(Score):
    """A number in [0, 1) that depends only on the content of the row and the seed; duplicates share it.

    Args:
        seed: Another seed gives another order.
        columns: Columns of prompt and response, for rows of no known shape that have no `row_id` column yet.
    """

    METHOD: ClassVar[str] = "random"
    MEASURES: ClassVar[str] = "control: chance"
    REQUIRES: ClassVar[str] = "nothing"

    seed: int = 0
    columns: Mapping[str, str] | Pairs | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        require_whole("seed", self.seed)
        object.__setattr__(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,); NaN for a row that cannot be read, and so has no other score either."""
        draws = [self._draw(row) if row else np.nan for row in self._row_ids(batch)]
        return {self.produces()[0]: np.array(draws, dtype=np.float32)}

    def _row_ids(self, batch: Batch) -> list[str | None]:
        if ROW_ID not in batch.names:
            rows = conversations(batch, dict(self.columns) if self.columns else None)
            return [None if row.reason else row_id(row) for row in rows]
        reasons = batch.cells(UNSCORABLE) if UNSCORABLE in batch.names else [""] * batch.n
        return [None if reason else row for row, reason in zip(batch.cells(ROW_ID), reasons, strict=True)]

    def _draw(self, row: str) -> float:
        # 24 bits: float32 holds that many below 1, so that rounding cannot give 1.
        digest = hashlib.sha256(f"{self.seed}:{row}".encode()).digest()
        return int.from_bytes(digest[:3], "big") / 2**24


def as_pairs(columns: Mapping[str, str] | Pairs | None) -> Pairs | None:
    """A `columns` mapping as sorted pairs, which can be hashed; None stays None."""
    if columns is None:
        return None
    return tuple(sorted((str(role), str(name)) for role, name in dict(columns).items()))
