"""How well a number tells two kinds of rows apart: AUROC, with an interval over requests, and of a held-out classifier.

Rows with the same request are not independent of each other, so requests are drawn and held out with all their rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DRAWS = 1000
_DRAWS_AT_ONCE = 50
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Separation:
    """An AUROC with the ends of its interval."""

    auroc: float
    low: float
    high: float

    def lies_outside(self, low: float, high: float) -> bool:
        """Whether all of the interval does."""
        return self.low > high or self.high < low

    @property
    def shown(self) -> str:
        """In words."""
        return f"AUROC {self.auroc:.2f}, {self.low:.2f} to {self.high:.2f}"


def separation(values: np.ndarray, unsafe: np.ndarray, requests: np.ndarray, level: float = 0.95) -> Separation:
    """The AUROC of `values` for unsafe rows against the others, with a percentile interval by bootstrap over requests.

    Args:
        values: float64 `(n,)`.
        unsafe: bool `(n,)`; there are rows of both kinds.
        requests: Number of the request of each row, int `(n,)`, from 0.
        level: Coverage of the interval.
    """
    order = np.argsort(values, kind="stable")
    ordered, high, request = values[order], unsafe[order], requests[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    count = int(requests.max()) + 1

    def aurocs(times: np.ndarray) -> np.ndarray:
        """Of rows that are there so many times, `(draws, n)`."""
        above, below = (np.add.reduceat(times * side, starts, axis=1) for side in (high, ~high))
        wins = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    draw = np.random.default_rng(0)
    chances = np.full(count, 1 / count)
    drawn = np.concatenate([
        aurocs(draw.multinomial(count, chances, size=_DRAWS_AT_ONCE)[:, request].astype(np.float64))
        for _ in range(_DRAWS // _DRAWS_AT_ONCE)
    ])  # fmt: skip
    low, top = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Separation(float(aurocs(np.ones((1, len(order))))[0]), float(low), float(top))


def held_out(features: np.ndarray, unsafe: np.ndarray, requests: np.ndarray) -> np.ndarray:
    """Log-odds of being unsafe, float64 `(n,)`, by logistic regression on the rows of other requests.

    Args:
        features: float64 `(n, f)`.
        unsafe: bool `(n,)`.
        requests: Number of the request of each row, int `(n,)`, from 0.
    """
    from sklearn.linear_model import LogisticRegression

    count = int(requests.max()) + 1
    fold = np.random.default_rng(0).permutation(np.arange(count) % FOLDS)[requests]
    odds = np.zeros(len(unsafe))
    for number in range(FOLDS):
        held = fold == number
        if held.any() and len(set(unsafe[~held].tolist())) == 2:
            model = LogisticRegression(class_weight="balanced", max_iter=1000)
            odds[held] = model.fit(features[~held], unsafe[~held]).decision_function(features[held])
    return odds


def numbered(texts: list[str]) -> np.ndarray:
    """The same number for the same text but for case and spaces, int64 `(n,)`, from 0."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(" ".join(text.casefold().split()), len(numbers)) for text in texts])
