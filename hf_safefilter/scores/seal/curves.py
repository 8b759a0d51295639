"""What happened in each epoch of a fit: mean losses, u, and quantiles of the weights. It resumes with the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_safefilter.scores.seal.bilevel import StepLosses
from hf_safefilter.scores.seal.options import SealOptions

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MEANS = ("safe_loss", "row_loss", "weighted_loss")


class Curves:
    """Sums over the current epoch, and one line for each finished epoch, as plain JSON values.

    Args:
        options: The options of the fit.
        before: What `state` returned in the run that is continued.
    """

    def __init__(self, options: SealOptions, before: Mapping[str, Any] | None = None) -> None:
        self._options = options
        self.epochs: list[dict[str, Any]] = list(before["epochs"]) if before else []
        self._sums: dict[str, list[float]] = dict(before["sums"]) if before else _zero()

    def add(self, losses: StepLosses) -> None:
        """Add the losses of a step to the sums of the epoch."""
        pairs = zip(_MEANS, (losses.safe, losses.rows, losses.rows * losses.weights), strict=True)
        for name, values in pairs:
            finite = values[values.isfinite()]
            total, count = self._sums[name]
            self._sums[name] = [total + float(finite.sum()), count + len(finite)]

    def close(self, epoch: int, weights: np.ndarray) -> None:
        """End an epoch, with the `weights` (n,) of the rows that are not excluded."""
        means = {name: total / count if count else None for name, (total, count) in self._sums.items()}
        quantiles = np.quantile(weights, QUANTILES) if len(weights) else []
        line: dict[str, Any] = {"epoch": epoch + 1, "u": self._options.upper_weight_at(epoch)} | means
        line["weights"] = {f"{q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=False)}
        self.epochs.append(line)
        self._sums = _zero()

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs, for a checkpoint."""
        return {"epochs": self.epochs, "sums": self._sums}


def _zero() -> dict[str, list[float]]:
    return {name: [0.0, 0] for name in _MEANS}
