"""One step of SEAL: the model moves first, then the selector, both by the losses from before the model moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_safefilter.scores.seal.learner import Learner, diverged
from hf_safefilter.scores.seal.training_processes import Processes
from hf_safefilter.scores.seal.weights import RowWeights


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Losses and weights of a step's whole batch, from before the model moved: float64 on the CPU.

    Attributes:
        safe: Losses of the safe rows, (s,).
        rows: Losses of the weighted rows, (m,).
        weights: Weights of these rows, (m,).
    """

    safe: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor


class Bilevel:
    """Model, selector and, for Algorithm 1, the auxiliary model.

    Args:
        learner: The model, theta.
        weights: The selector, w.
        processes: The processes that share each step.
        auxiliary: The model that follows the weighted rows alone, theta_hat; None for Algorithm 2.
        device: Where sums over processes are computed.
    """

    def __init__(
        self,
        learner: Learner,
        weights: RowWeights,
        processes: Processes,
        auxiliary: Learner | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.learner, self.weights, self.auxiliary = learner, weights, auxiliary
        self._processes, self._device = processes, device or torch.device("cpu")

    def step(self, u: float, safe: Sequence[Any], rows: Sequence[Any], indices: torch.Tensor) -> StepLosses:
        """Move by ``u mean(l_safe) + (1 - u) mean(p l)``, then the selector by ``mean(p l)`` with the same l.

        With an auxiliary model the selector moves by ``mean(p (l - l_hat))``, and that model by ``mean(p l_hat)``.

        Args:
            u: Weight of the safe loss.
            safe: Safe examples of the step, of all processes together.
            rows: Weighted examples of the step, of all processes together.
            indices: Their indices among the weights, int64 (len(rows),).

        Raises:
            ModelError: No loss of the step is finite, or a gradient is not finite.
        """
        p = self.weights.at(indices)
        share = self._processes.share
        own_safe, own_rows = share(safe), share(rows)
        factors = share(p) / max(len(rows), 1)
        equal = torch.full((len(own_safe),), u / max(len(safe), 1), dtype=torch.float64)
        safe_losses = self._whole(self.learner.add(own_safe, equal), len(safe))
        losses = self._whole(self.learner.add(own_rows, (1 - u) * factors), len(rows))
        gap = losses
        if self.auxiliary is not None:
            gap = losses - self._whole(self.auxiliary.add(own_rows, factors), len(rows))
        if not torch.isfinite(torch.cat([safe_losses, losses])).any():
            raise diverged("no row of the step has a finite loss")
        self.learner.step()
        if self.auxiliary is not None:
            self.auxiliary.step()
        self.weights.step(indices, gap)
        return StepLosses(safe_losses, losses, p)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes."""
        return {f"{part}.{name}": tensor for part, owner in self._parts() for name, tensor in owner.state().items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state` returned."""
        for part, owner in self._parts():
            prefix = f"{part}."
            owner.restore({n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)})

    def _whole(self, own: torch.Tensor, size: int) -> torch.Tensor:
        return self._processes.whole(own, size, self._device)

    def _parts(self) -> list[tuple[str, Learner | RowWeights]]:
        parts: list[tuple[str, Learner | RowWeights]] = [("model", self.learner), ("selector", self.weights)]
        return parts if self.auxiliary is None else [*parts, ("auxiliary", self.auxiliary)]
