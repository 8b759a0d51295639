"""One weight for each row, and the exact update of its logit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hf_safefilter.scores.seal.optimisers import adam, clip, put_state, sgd, state_of

INITIAL = {"softmax": 0.1, "sigmoid": -1e-4}
_CLIP = 10.0


@dataclass(frozen=True, slots=True)
class SelectorStep:
    """A step of the selector: its objective, and the indices of the rows that had no finite loss, int64."""

    objective: float
    excluded: torch.Tensor


class RowWeights:
    """The selector: logits of n rows, stored and updated in float64 on the CPU.

    A row whose loss is not finite is excluded for good: its weight is 0, and the others are as if it had never been
    among the rows. (In the reference code one such row turns every weight into NaN.)

    Args:
        n: Number of rows.
        activation: "softmax": p = n softmax(logits), mean 1; "sigmoid": p = 2 sigmoid(logits).
        learning_rate: Constant learning rate of the logits.
        optimiser: "adam" (betas 0.9 and 0.95, no weight decay) or "sgd".
    """

    def __init__(self, n: int, activation: str, learning_rate: float, optimiser: str = "adam") -> None:
        self.logits = torch.nn.Parameter(torch.full((n,), INITIAL[activation], dtype=torch.float64))
        self.active = torch.ones(n, dtype=torch.bool)
        self._softmax = activation == "softmax"
        make = adam if optimiser == "adam" else sgd
        self._optimiser = make([self.logits], learning_rate)

    def all(self) -> torch.Tensor:
        """The weights p of all rows, float64 (n,); 0 for excluded rows."""
        if self._softmax:
            # masked before the softmax, so that the weight of an excluded row is shared among the others
            return self.active.sum() * torch.softmax(self.logits.masked_fill(~self.active, -torch.inf), 0)
        return (2 * torch.sigmoid(self.logits)).masked_fill(~self.active, 0.0)

    def at(self, indices: torch.Tensor) -> torch.Tensor:
        """The weights p of the rows at `indices` (m,), without gradient."""
        with torch.no_grad():
            return self.all()[indices]

    def step(self, indices: torch.Tensor, losses: torch.Tensor) -> SelectorStep:
        """Descend on mean_i p_i l_i over a batch, with losses from before the step of the model.

        Every logit gets a gradient, also those of rows outside the batch. For the softmax that is
        ``n s_j ([j in batch] l_j / m - sum_i s_i l_i / m)`` with s = softmax(logits).

        Args:
            indices: The rows of the batch, int64 (m,).
            losses: Their losses, float64 (m,); a row whose loss is not finite is excluded from now on.
        """
        finite = torch.isfinite(losses)
        excluded = indices[~finite]
        self.active[excluded] = False
        indices, losses = indices[finite], losses[finite]
        if not len(indices):
            return SelectorStep(float("nan"), excluded)
        objective = (self.all()[indices] * losses).mean()
        self._optimiser.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        clip([self.logits], _CLIP)
        self._optimiser.step()
        return SelectorStep(objective.item(), excluded)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes, as tensors."""
        return {"logits": self.logits.detach(), "active": self.active} | state_of(self._optimiser)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` returned."""
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.active.copy_(state["active"])
        put_state(self._optimiser, state)
