"""A model in training: its trained parameters, its optimiser, and gradients summed over micro-batches and processes."""

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
    """The lower level: a model that is trained with weighted losses.

    Args:
        model: The model, in training mode.
        losses: A function (model, examples) -> losses (m,); examples are whatever it accepts.
        trained: Name -> parameter that is trained.
        learning_rate: Constant learning rate of Adam.
        micro_batch: Number of examples in one forward pass.
        processes: The processes that share each step.
        autocast: Context in which losses are computed.
        activate: Called before the model is used: two adapters may share one model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        losses: Losses,
        trained: Mapping[str, torch.nn.Parameter],
        learning_rate: float,
        micro_batch: int,
        processes: Processes,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        activate: Callable[[], None] = lambda: None,
    ) -> None:
        self.trained = dict(trained)
        self._model, self._losses, self._micro_batch = model, losses, micro_batch
        self._processes, self._autocast, self._activate = processes, autocast, activate
        self._optimiser = adam(self.trained.values(), learning_rate)

    def add(self, examples: Sequence[Any], factors: torch.Tensor) -> torch.Tensor:
        """Add the gradient of ``sum_i factors_i l_i`` to the gradient so far.

        An example whose loss is not finite adds nothing: even with a factor of 0 it would make every gradient NaN, so
        its micro-batch is computed again without it. Where all factors are 0, no gradient is computed.

        Args:
            examples: The examples of this process.
            factors: What each loss is multiplied with, (m,).

        Returns:
            The losses before the step, float64 (m,) on the CPU.
        """
        self._activate()
        losses = torch.full((len(examples),), torch.nan, dtype=torch.float64)
        # examples of similar length waste little padding
        order = sorted(range(len(examples)), key=lambda index: _length(examples[index]))
        for start in range(0, len(order), self._micro_batch):
            part = order[start : start + self._micro_batch]
            losses[part] = self._add([examples[index] for index in part], factors[part])
        return losses

    def _add(self, examples: Sequence[Any], factors: torch.Tensor) -> torch.Tensor:
        needs_gradient = bool(factors.any())
        with torch.set_grad_enabled(needs_gradient), self._autocast():
            losses = self._losses(self._model, examples)
        values = losses.detach().cpu().double()
        if not needs_gradient:
            return values
        finite = torch.isfinite(values)
        if finite.all():
            (losses * factors.to(losses)).sum().backward()  # type: ignore[no-untyped-call]
        elif finite.any():
            del losses
            self._add([example for example, keep in zip(examples, finite, strict=True) if keep], factors[finite])
        return values

    def step(self) -> None:
        """Move by the gradient of all processes together, and reset it.

        Raises:
            ModelError: The gradient is not finite.
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
        """The trained weights and the state of the optimiser."""
        return {f"weight.{name}": weight.detach() for name, weight in self.trained.items()} | state_of(self._optimiser)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` returned."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state[f"weight.{name}"])
        put_state(self._optimiser, state)


def diverged(fact: str) -> ModelError:
    """The error of a training run that has diverged."""
    return ModelError(
        f"training has diverged: {fact}",
        fix='lower the learning rate, or compute in float32 (`dtype="float32"`); checkpoints of earlier steps are kept',
    )


def _length(example: Any) -> int:
    return len(getattr(example, "ids", ()))
