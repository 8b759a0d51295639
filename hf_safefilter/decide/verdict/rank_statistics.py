"""Statistics of ranks: AUROC, on all rows and among rows of like length, by bootstrap; rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROWS_ALIKE = 10
"""Rows in a stratum of like length, about. Fewer leave no pairs; in wider strata length itself still tells (of 1,000
simulated rows where it has AUROC 0.87, it keeps 0.57 in 10 strata, and 0.51 in 100)."""

_RESAMPLES_AT_ONCE = 50
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def spearman(left: np.ndarray, right: np.ndarray) -> float | None:
    """Rank correlation over the rows where both are finite; None if there are under 3, or one does not vary."""
    from scipy.stats import spearmanr

    both = np.isfinite(left) & np.isfinite(right)
    if both.sum() < 3 or np.ptp(left[both]) == 0 or np.ptp(right[both]) == 0:
        return None
    return float(spearmanr(left[both], right[both]).statistic)


def strata_of(lengths: np.ndarray, rows: int = ROWS_ALIKE) -> np.ndarray:
    """The stratum of each row, int (n,): quantiles of `lengths` (n,) that hold about `rows` rows each.

    Rows of equal length are always in one stratum.
    """
    count = max(1, len(lengths) // rows)
    edges = np.quantile(lengths, np.arange(1, count) / count) if count > 1 else np.empty(0)
    return np.searchsorted(np.unique(edges), lengths, side="right")


class Ranking:
    """Rows in the order of their scores, in all or within strata, for AUROCs of many resamples at once.

    Args:
        scores: Finite scores (n,).
        strata: Stratum of each row, int (n,); None: all rows are one stratum.
    """

    def __init__(self, scores: np.ndarray, strata: np.ndarray | None = None) -> None:
        strata = np.zeros(len(scores), dtype=int) if strata is None else strata
        order = np.lexsort((scores, strata))
        ordered, layers = scores[order], strata[order]
        first_of_stratum = np.append(True, layers[1:] != layers[:-1])
        first_of_ties = first_of_stratum | np.append(True, ordered[1:] != ordered[:-1])
        groups = np.cumsum(first_of_ties) - 1
        self._group = np.empty(len(scores), dtype=np.int64)
        self._group[order] = groups
        self._groups = int(groups[-1]) + 1
        self._starts = groups[first_of_stratum]
        self._sizes = np.diff(np.append(self._starts, self._groups))

    def aurocs(self, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """The AUROC of each resample, float64 (t,): the share of the pairs of a stratum whose unsafe row scores higher.

        Ties count half. The mean over the strata is weighted by their numbers of pairs; NaN where there is no pair.

        Args:
            unsafe: Indices of the drawn unsafe rows, int (t, m).
            safe: Indices of the drawn safe rows, int (t, s).
        """
        high, low = self._counts(unsafe), self._counts(safe)
        below = np.cumsum(low, axis=1) - low
        below -= np.repeat(below[:, self._starts], self._sizes, axis=1)  # only those of the same stratum
        concordant = (high * (below + low / 2)).sum(axis=1)
        pairs = (np.add.reduceat(high, self._starts, axis=1) * np.add.reduceat(low, self._starts, axis=1)).sum(axis=1)
        return np.divide(concordant, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    def auroc(self, unsafe: np.ndarray) -> float | None:
        """The AUROC of the rows as they are; `unsafe` is bool (n,). None where there is no pair."""
        value = float(self.aurocs(np.flatnonzero(unsafe)[None], np.flatnonzero(~unsafe)[None])[0])
        return None if np.isnan(value) else value

    def _counts(self, rows: np.ndarray) -> np.ndarray:
        """How often each group of ties was drawn, float64 (t, groups)."""
        times = len(rows)
        flat = (np.arange(times)[:, None] * self._groups + self._group[rows]).ravel()
        return np.bincount(flat, minlength=times * self._groups).reshape(times, self._groups).astype(float)


def resampled(unsafe: np.ndarray, rankings: Sequence[Ranking], resamples: int, seed: int) -> np.ndarray:
    """AUROCs of `rankings` on the same resamples of the rows, float64 (rankings, resamples).

    Rows are drawn within each label, so that differences between the rankings are those of the same rows.

    Args:
        unsafe: Whether a row is unsafe, bool (n,), with rows of both kinds.
        rankings: Rankings of the n rows.
        resamples: Number of resamples.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    sides = np.flatnonzero(unsafe), np.flatnonzero(~unsafe)
    most = max(1, min(_RESAMPLES_AT_ONCE, _DRAWS_AT_ONCE // len(unsafe)))
    parts = []
    for start in range(0, resamples, most):
        times = min(most, resamples - start)
        high, low = (side[draw.integers(0, len(side), (times, len(side)))] for side in sides)
        parts.append([ranking.aurocs(high, low) for ranking in rankings])
    return np.concatenate(parts, axis=1)


def interval(value: float, resamples: np.ndarray) -> Interval:
    """`value` with the 95 % percentile interval of its resamples; those without a value are left out."""
    low, high = np.nanquantile(resamples, [0.025, 0.975])
    return Interval(value, float(low), float(high))
