"""One weight a row, and the exact update of its logit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hf_safefilter.scores.seal.optimisers import adam, clip, put_state, sgd, state_of

INITIAL = {"softmax": 0.1, "sigmoid": -1e-4}
_CLIP = 10.0


@dataclass(frozen=True, slots=True)
class Judged:
    """What a step of the selector did: its objective, and the rows that it found no finite loss for."""

    objective: float
    excluded: torch.Tensor


class RowWeights:
    """The selector: logits of n rows, kept and updated in float64 on the CPU.

    A row whose loss is no number is excluded for good: its weight is 0, and the others are as if it had never been
    there. (In the reference one such row turns every weight into NaN.)

    Args:
        n: number of rows.
        activation: "softmax": p = n softmax(logits), mean 1; "sigmoid": p = 2 sigmoid(logits).
        learning_rate: constant.
        optimiser: "adam" (betas 0.9 and 0.95, no weight decay) or "sgd".
    """

    def __init__(self, n: int, activation: str, learning_rate: float, optimiser: str = "adam") -> None:
        self.logits = torch.nn.Parameter(torch.full((n,), INITIAL[activation], dtype=torch.float64))
        self.active = torch.ones(n, dtype=torch.bool)
        self._softmax = activation == "softmax"
        make = adam if optimiser == "adam" else sgd
        self._optimiser = make([self.logits], learning_rate)

    def all(self) -> torch.Tensor:
        """p (n,), float64; 0 for excluded rows."""
        if self._softmax:
            # masked before the softmax: what an excluded row weighed is shared among the others
            return self.active.sum() * torch.softmax(self.logits.masked_fill(~self.active, -torch.inf), 0)
        return (2 * torch.sigmoid(self.logits)).masked_fill(~self.active, 0.0)

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """p of the rows at `places` (m,), without gradient."""
        with torch.no_grad():
            return self.all()[places]

    def step(self, places: torch.Tensor, losses: torch.Tensor) -> Judged:
        """Descend on mean_i p_i l_i over a batch, with losses from before the model's own step.

        Every logit gets a gradient, also those of rows outside the batch. For the softmax that is
        ``n s_j ([j in batch] l_j / m - sum_i s_i l_i / m)`` with s = softmax(logits).

        Args:
            places: the batch, int64 (m,).
            losses: float64 (m,); where one is not finite, its row is excluded from now on.
        """
        finite = torch.isfinite(losses)
        excluded = places[~finite]
        self.active[excluded] = False
        places, losses = places[finite], losses[finite]
        if not len(places):
            return Judged(float("nan"), excluded)
        objective = (self.all()[places] * losses).mean()
        self._optimiser.zero_grad()
        objective.backward()
        clip([self.logits], _CLIP)
        self._optimiser.step()
        return Judged(objective.item(), excluded)

    def state(self) -> dict[str, torch.Tensor]:
        """All of it as tensors, for a checkpoint."""
        return {"logits": self.logits.detach(), "active": self.active} | state_of(self._optimiser)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.active.copy_(state["active"])
        put_state(self._optimiser, state)
