"""A model in training: what of it moves, its optimiser, and gradients added up over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hf_safefilter.errors import ModelError
from hf_safefilter.scores.seal.optimisers import adam, clip, put_state, state_of
from hf_safefilter.scores.seal.training_processes import Processes

Losses = Callable[[torch.nn.Module, Sequence[Any]], torch.Tensor]

_CLIP = 1.0


class Learner:
    """The lower level: a model that is moved by weighted losses.

    Args:
        model: in training mode.
        losses: (model, examples) -> losses (m,).
        trained: name -> parameter that moves.
        learning_rate: of Adam.
        micro_batch: examples read at once.
        processes: who else works on the same step.
        autocast: context in which losses are computed.
        activate: called before the model is used: two adapters may share one model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        losses: Losses,
        trained: Mapping[str, torch.nn.Parameter],
        learning_rate: float,
        micro_batch: int,
        processes: Processes,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        activate: Callable[[], None] = lambda: None,
    ) -> None:
        self.trained = dict(trained)
        self._model, self._losses, self._micro_batch = model, losses, micro_batch
        self._processes, self._autocast, self._activate = processes, autocast, activate
        self._optimiser = adam(self.trained.values(), learning_rate)

    def add(self, examples: Sequence[Any], shares: torch.Tensor) -> torch.Tensor:
        """Add the gradient of ``sum_i shares_i l_i`` to what is there.

        An example whose loss is not finite adds nothing: even with a share of 0 it would make every gradient NaN, so
        those beside it are read again without it. Where all shares are 0 no gradient is taken at all.

        Args:
            examples: this process's.
            shares: (m,), what each loss counts.

        Returns:
            The losses before the step, float64 (m,) on the CPU.
        """
        self._activate()
        losses = torch.full((len(examples),), torch.nan, dtype=torch.float64)
        # neighbours of like length waste little padding
        order = sorted(range(len(examples)), key=lambda at: _length(examples[at]))
        for start in range(0, len(order), self._micro_batch):
            part = order[start : start + self._micro_batch]
            losses[part] = self._add([examples[at] for at in part], shares[part])
        return losses

    def _add(self, examples: Sequence[Any], shares: torch.Tensor) -> torch.Tensor:
        moving = bool(shares.any())
        with torch.set_grad_enabled(moving), self._autocast():
            losses = self._losses(self._model, examples)
        found = losses.detach().cpu().double()
        if not moving:
            return found
        good = torch.isfinite(found)
        if good.all():
            (losses * shares.to(losses)).sum().backward()
        elif good.any():
            del losses
            self._add([one for one, fine in zip(examples, good, strict=True) if fine], shares[good])
        return found

    def step(self) -> None:
        """Move by the gradient of all processes, and forget it.

        Raises:
            ModelError: the gradient is not finite.
        """
        for parameter in self.trained.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._processes.total(gradient)
        norm = clip(self.trained.values(), _CLIP)
        if not norm < float("inf"):
            raise diverged("the gradient is not finite")
        self._optimiser.step()
        self._optimiser.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """Weights that move, and the optimiser's moments."""
        return {f"weight.{name}": one.detach() for name, one in self.trained.items()} | state_of(self._optimiser)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            for name, one in self.trained.items():
                one.copy_(state[f"weight.{name}"])
        put_state(self._optimiser, state)


def diverged(fact: str) -> ModelError:
    """The error of a training that came to nothing."""
    return ModelError(
        f"training has diverged: {fact}",
        fix="lower the learning rate, or compute in float32; checkpoints of earlier steps are kept",
    )


def _length(example: Any) -> int:
    return len(getattr(example, "ids", ()))
