"""One step of SEAL: the model moves first, then the selector, by the losses from before the model moved."""

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
    """What a step saw: float64 on the CPU, of the whole batch, from before the model moved.

    Attributes:
        safe: losses of the safe rows.
        rows: losses of the rows.
        weights: the rows' weights.
    """

    safe: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor


class Bilevel:
    """Model, selector and, for Algorithm 1, the auxiliary model.

    Args:
        learner: theta.
        weights: w.
        processes: who else works on the same step.
        auxiliary: theta_hat, which follows the weighted rows alone; None for Algorithm 2.
        device: where sums over processes are taken.
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

    def step(self, u: float, safe: Sequence[Any], rows: Sequence[Any], places: torch.Tensor) -> StepLosses:
        """Move by ``u mean(l_safe) + (1 - u) mean(p l)``, then the selector by ``mean(p l)`` with the same l.

        With an auxiliary model the selector moves by ``mean(p (l - l_hat))``, and that model by ``mean(p l_hat)``.

        Args:
            u: weight of the safe loss.
            safe: safe examples of the step, all processes' together.
            rows: examples to be weighed, all processes' together.
            places: their places among the weights, int64 (len(rows),).

        Raises:
            ModelError: no loss of the step is finite, or a gradient is not.
        """
        p = self.weights.at(places)
        mine = self._processes.share
        ours_safe, ours = mine(safe), mine(rows)
        shares = mine(p) / max(len(rows), 1)
        equal = torch.full((len(ours_safe),), u / max(len(safe), 1), dtype=torch.float64)
        safe_losses = self._whole(self.learner.add(ours_safe, equal), len(safe))
        losses = self._whole(self.learner.add(ours, (1 - u) * shares), len(rows))
        gap = losses
        if self.auxiliary is not None:
            gap = losses - self._whole(self.auxiliary.add(ours, shares), len(rows))
        if not torch.isfinite(torch.cat([safe_losses, losses])).any():
            raise diverged("no row of the step has a finite loss")
        self.learner.step()
        if self.auxiliary is not None:
            self.auxiliary.step()
        self.weights.step(places, gap)
        return StepLosses(safe_losses, losses, p)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes."""
        return {f"{part}.{name}": one for part, owner in self._parts() for name, one in owner.state().items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        for part, owner in self._parts():
            owner.restore({n.removeprefix(f"{part}."): one for n, one in state.items() if n.startswith(f"{part}.")})

    def _whole(self, mine: torch.Tensor, size: int) -> torch.Tensor:
        return self._processes.whole(mine, size, self._device)

    def _parts(self) -> list[tuple[str, Any]]:
        parts = [("model", self.learner), ("selector", self.weights)]
        return parts if self.auxiliary is None else [*parts, ("auxiliary", self.auxiliary)]
