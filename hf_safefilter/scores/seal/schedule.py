"""Which rows meet in which step: a function of the seed and the step's number, so that a run can go on anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ROWS, _SAFE = 0, 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of a fit.

    An epoch is one pass over the rows in a new order, in batches that differ by one row at most: a small last batch
    would push its rows harder than the others. The safe rows are an endless sequence of shuffled passes from which each
    batch takes as many as it has rows. (The reference stops at the shorter of two loaders, so with few safe rows most
    rows would never be weighed.)

    Attributes:
        rows, safe: how many there are of each.
        batch: rows of a step, at most.
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
        epoch, start, stop = self._within(step)
        return _shuffled(self.rows, self.seed, _ROWS, epoch)[start:stop]

    def safe_at(self, step: int) -> np.ndarray:
        """Places of the safe rows of a step, as many as it has rows."""
        epoch, start, stop = self._within(step)
        places = range(epoch * self.rows + start, epoch * self.rows + stop)
        return np.array([_shuffled(self.safe, self.seed, _SAFE, at // self.safe)[at % self.safe] for at in places])

    def _within(self, step: int) -> tuple[int, int, int]:
        """The epoch of a step, and where its batch starts and stops in it."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return epoch, at * self.rows // self.steps_per_epoch, (at + 1) * self.rows // self.steps_per_epoch


@lru_cache(maxsize=8)
def _shuffled(count: int, seed: int, kind: int, lap: int) -> np.ndarray:
    return np.random.default_rng([seed, kind, lap]).permutation(count)
