"""The optimisers of both levels, and their state as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

_STATE = ("step", "exp_avg", "exp_avg_sq")


def adam(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam as SEAL runs it at both levels: betas 0.9 and 0.95, no weight decay, constant rate."""
    return torch.optim.Adam(list(parameters), lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)


def sgd(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.SGD:
    """Plain gradient descent: no momentum, so no state."""
    return torch.optim.SGD(list(parameters), lr=learning_rate)


def clip(parameters: Iterable[torch.nn.Parameter], largest: float) -> float:
    """Scale the gradients down together where their norm is above `largest`; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, largest))


def state_of(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Moments and step counts by name; none before the first step."""
    return {
        f"{place}.{name}": moments[name]
        for place, moments in optimiser.state_dict()["state"].items()
        for name in _STATE
        if name in moments
    }


def put_state(optimiser: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    """Go on from what `state_of` gave; other names are left aside."""
    count = len(optimiser.param_groups[0]["params"])
    found = {
        place: {name: state[f"{place}.{name}"] for name in _STATE} for place in range(count) if f"{place}.step" in state
    }
    optimiser.load_state_dict({"state": found, "param_groups": optimiser.state_dict()["param_groups"]})
