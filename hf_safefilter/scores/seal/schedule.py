"""Which rows are in which step: a function of the seed and the step number, so that a run can continue at any step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ROWS, _SAFE = 0, 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rows and safe rows of each step of a fit.

    An epoch is one pass over the rows in a new order, in batches that differ by one row at most: the rows of a small
    last batch would have more influence than the others. The safe rows are an endless sequence of shuffled passes from
    which each batch takes as many as it has rows. (The reference code stops at the shorter of two loaders, so with few
    safe rows most rows would never be weighed.)

    Attributes:
        rows: Number of weighted rows.
        safe: Number of safe rows.
        batch: Largest number of rows in a step.
        epochs: Number of passes over the rows.
        seed: Seed of the order.
    """

    rows: int
    safe: int
    batch: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in a pass over the rows."""
        return -(-self.rows // self.batch)

    @property
    def steps(self) -> int:
        """Number of steps in the whole fit."""
        return self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def rows_at(self, step: int) -> np.ndarray:
        """Indices of the rows of a step, int64 (m,)."""
        epoch, start, stop = self._within(step)
        return _shuffled(self.rows, self.seed, _ROWS, epoch)[start:stop]

    def safe_at(self, step: int) -> np.ndarray:
        """Indices of the safe rows of a step, as many as it has rows."""
        epoch, start, stop = self._within(step)
        positions = range(epoch * self.rows + start, epoch * self.rows + stop)
        return np.array([_shuffled(self.safe, self.seed, _SAFE, p // self.safe)[p % self.safe] for p in positions])

    def _within(self, step: int) -> tuple[int, int, int]:
        """The epoch of a step, and where its batch starts and stops in the order of that epoch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch, batch * self.rows // self.steps_per_epoch, (batch + 1) * self.rows // self.steps_per_epoch


@lru_cache(maxsize=8)
def _shuffled(count: int, seed: int, kind: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, kind, epoch]).permutation(count)
