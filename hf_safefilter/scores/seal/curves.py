"""What each epoch of a fit saw: mean losses, u, and how the weights spread. It resumes with the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_safefilter.scores.seal.bilevel import StepLosses
from hf_safefilter.scores.seal.options import SealOptions

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MEANS = ("safe_loss", "row_loss", "weighted_loss")


class Curves:
    """Sums of the epoch that runs, and the closed lines of those before it; plain JSON throughout."""

    def __init__(self, options: SealOptions, before: Mapping[str, Any] | None = None) -> None:
        self._options = options
        self.epochs: list[dict[str, Any]] = list(before["epochs"]) if before else []
        self._sums: dict[str, list[float]] = dict(before["sums"]) if before else _zero()

    def add(self, seen: StepLosses) -> None:
        """Take in the losses of a step."""
        pairs = zip(_MEANS, (seen.safe, seen.rows, seen.rows * seen.weights), strict=True)
        for name, losses in pairs:
            finite = losses[losses.isfinite()]
            total, count = self._sums[name]
            self._sums[name] = [total + float(finite.sum()), count + len(finite)]

    def close(self, epoch: int, weights: np.ndarray) -> None:
        """End an epoch, with the `weights` (n,) of the rows that are still in it."""
        means = {name: total / count if count else None for name, (total, count) in self._sums.items()}
        spread = np.quantile(weights, QUANTILES) if len(weights) else []
        line = {"epoch": epoch + 1, "u": self._options.upper_weight_at(epoch)} | means
        line["weights"] = {f"{at:g}": float(value) for at, value in zip(QUANTILES, spread, strict=False)}
        self.epochs.append(line)
        self._sums = _zero()

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"epochs": self.epochs, "sums": self._sums}


def _zero() -> dict[str, list[float]]:
    return {name: [0.0, 0] for name in _MEANS}
