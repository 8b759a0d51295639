"""The optimisers of both levels, and their state as tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

_STATE = ("step", "exp_avg", "exp_avg_sq")


def adam(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam as SEAL uses it at both levels: betas 0.9 and 0.95, no weight decay, constant learning rate."""
    return torch.optim.Adam(list(parameters), lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)


def sgd(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.SGD:
    """Plain gradient descent, without momentum and so without state."""
    return torch.optim.SGD(list(parameters), lr=learning_rate)


def clip(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients down by one factor if their joint norm is above `max_norm`; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))


def state_of(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Moments and step counts by name; empty before the first step."""
    return {
        f"{index}.{name}": moments[name]
        for index, moments in optimiser.state_dict()["state"].items()
        for name in _STATE
        if name in moments
    }


def put_state(optimiser: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    """Continue from what `state_of` returned; other names are ignored."""
    count = len(optimiser.param_groups[0]["params"])
    moments = {
        index: {name: state[f"{index}.{name}"] for name in _STATE} for index in range(count) if f"{index}.step" in state
    }
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
