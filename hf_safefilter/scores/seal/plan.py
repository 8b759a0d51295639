"""Which rows meet in which step: a function of the seed and the step's number, so that a run can go on anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ROWS, _SAFE = 0, 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of a fit.

    An epoch is one pass over the rows in a new order; its last batch may be smaller. The safe rows are an endless
    sequence of shuffled passes from which each batch takes as many as it has rows. (The reference stops at the shorter
    of two loaders, so with few safe rows most rows would never be weighed.)

    Attributes:
        rows, safe: how many there are of each.
        batch: rows of a step.
        epochs: passes over the rows.
        seed: another seed, another order.
    """

    rows: int
    safe: int
    batch: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the rows."""
        return -(-self.rows // self.batch)

    @property
    def steps(self) -> int:
        """Steps of the whole fit."""
        return self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def rows_at(self, step: int) -> np.ndarray:
        """Places of the rows of a step, int64 (m,)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch
        return _shuffled(self.rows, self.seed, _ROWS, epoch)[start : start + self.batch]

    def safe_at(self, step: int) -> np.ndarray:
        """Places of the safe rows of a step, as many as it has rows."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = epoch * self.rows + within * self.batch
        places = np.arange(start, start + len(self.rows_at(step)))
        return np.array([_shuffled(self.safe, self.seed, _SAFE, at // self.safe)[at % self.safe] for at in places])


@lru_cache(maxsize=8)
def _shuffled(count: int, seed: int, kind: int, lap: int) -> np.ndarray:
    return np.random.default_rng([seed, kind, lap]).permutation(count)
