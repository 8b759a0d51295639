"""Controls: what any method must beat. Every report shows them beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import ROW_ID, UNSCORABLE
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations, response_of, row_id
from hf_safefilter.errors import OptionError
from hf_safefilter.scores.base import Score
from hf_safefilter.step import Step

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LengthScore(Score):
    """Characters in the response. Unsafe answers are often longer than refusals: a score may be no more than this.

    Args:
        columns: where prompt and response are, for rows of no known shape.
    """

    METHOD: ClassVar[str] = "length"
    MEASURES: ClassVar[str] = "control: characters in the response"
    REQUIRES: ClassVar[str] = "nothing"

    columns: Mapping[str, str] | Pairs | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,); NaN where there is no response to read."""
        read = conversations(batch, dict(self.columns) if self.columns else None)
        sizes = [np.nan if one.reason else len(response_of(one)) for one in read]
        return {self.produces()[0]: np.array(sizes, dtype=np.float32)}


@dataclass(frozen=True, slots=True)
class RandomScore(Score):
    """A number in [0, 1) that depends on the row's content and the seed alone; duplicates share it.

    Args:
        seed: another seed, another order.
        columns: where prompt and response are, for rows of no known shape that have no `row_id` column yet.
    """

    METHOD: ClassVar[str] = "random"
    MEASURES: ClassVar[str] = "control: chance"
    REQUIRES: ClassVar[str] = "nothing"

    seed: int = 0
    columns: Mapping[str, str] | Pairs | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise OptionError(f"seed={self.seed!r} is not a whole number", fix="use for example seed=0")
        object.__setattr__(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,); NaN for a row that the other scores cannot judge either."""
        draws = [self._draw(one) if one else np.nan for one in self._row_ids(batch)]
        return {self.produces()[0]: np.array(draws, dtype=np.float32)}

    def _row_ids(self, batch: Batch) -> list[str | None]:
        if ROW_ID not in batch.names:
            read = conversations(batch, dict(self.columns) if self.columns else None)
            return [None if one.reason else row_id(one) for one in read]
        reasons = batch.cells(UNSCORABLE) if UNSCORABLE in batch.names else [""] * batch.n
        return [None if reason else one for one, reason in zip(batch.cells(ROW_ID), reasons, strict=True)]

    def _draw(self, one: str) -> float:
        # 24 bits: as many as float32 holds below 1, so that rounding cannot reach it.
        drawn = hashlib.sha256(f"{self.seed}:{one}".encode()).digest()
        return int.from_bytes(drawn[:3], "big") / 2**24


def as_pairs(columns: Mapping[str, str] | Pairs | None) -> Pairs | None:
    """A `columns` mapping as sorted pairs, which a step can hash; None stays None."""
    if columns is None:
        return None
    return tuple(sorted((str(role), str(name)) for role, name in dict(columns).items()))
