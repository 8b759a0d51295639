"""How a selector is fitted: the published defaults, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hf_safefilter.errors import OptionError

ACTIVATIONS = ("softmax", "sigmoid")
SELECTOR_RATES = {"adam": 5e-3, "sgd": 1.0}
"""Optimiser of the logits -> its rate, unless another is given."""

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class SealOptions:
    """The numbers of a fit; the defaults are those published for Llama-3-8B-Instruct.

    Args:
        activation: how logits become weights: "softmax" (weights of mean 1 over all rows) or "sigmoid" (0 to 2 each).
        auxiliary: keep a second model that is fitted to the weighted rows alone, and judge a row by how much better
            that one does on it (Algorithm 1, twice the work); without it, by the loss itself (Algorithm 2).
        epochs: passes over the rows. The safe rows are repeated as often as it takes.
        learning_rate: of the model.
        selector_optimiser: of the logits. "adam" as published: a logit that is not in the batch rises by the same step
            whatever its gradient, so the order of visits drowns most of the ranking in a short run. "sgd" is ours: the
            same gradient followed plainly, so that logits rank rows by the losses that were seen.
        selector_learning_rate: of the logits; None: 5e-3 for "adam", 1.0 for "sgd".
        upper_weight: u, share of the safe loss in the model's loss, in 0..1; at 1 the rows never touch the model.
        upper_weight_decay: taken off u after each epoch; u never falls below 0.
        batch_size: rows, and as many safe rows, of an optimiser step; all processes together.
        micro_batch: rows read at once; lower it when memory is short.
        max_length: tokens a row may have; the model's own limit if None. The middle of a longer response is cut.
        dtype: "bfloat16" computes in mixed precision: what is trained stays float32. "auto": float32 on a CPU,
            bfloat16 on a GPU that has it.
        seed: of the order of rows, of adapters and of dropout.

    Raises:
        OptionError: a value that makes no sense.
    """

    activation: str = "softmax"
    auxiliary: bool = False
    epochs: int = 3
    learning_rate: float = 1e-5
    selector_optimiser: str = "adam"
    selector_learning_rate: float | None = None
    upper_weight: float = 1.0
    upper_weight_decay: float = 0.03
    batch_size: int = 64
    micro_batch: int = 8
    max_length: int | None = None
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("activation", ACTIVATIONS), ("selector_optimiser", SELECTOR_RATES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} {getattr(self, name)!r} is not known", fix=f"use one of {', '.join(known)}")
        if self.selector_learning_rate is None:
            object.__setattr__(self, "selector_learning_rate", SELECTOR_RATES[self.selector_optimiser])
        for name in ("epochs", "batch_size", "micro_batch"):
            _require(name, getattr(self, name), _whole(getattr(self, name)) and getattr(self, name) > 0, "1 or more")
        for name in ("learning_rate", "selector_learning_rate"):
            value = getattr(self, name)
            _require(name, value, _number(value) and value > 0, "a number above 0")
        _require(
            "upper_weight", self.upper_weight, _number(self.upper_weight) and 0 <= self.upper_weight <= 1, "0 to 1"
        )
        decay = self.upper_weight_decay
        _require("upper_weight_decay", decay, _number(decay) and decay >= 0, "0 or more")
        longest = self.max_length
        _require("max_length", longest, longest is None or (_whole(longest) and longest >= 8), "None, or 8 or more")
        _require("seed", self.seed, _whole(self.seed) and 0 <= self.seed < 2**31, "a whole number from 0")

    def upper_weight_at(self, epoch: int) -> float:
        """u in epoch 0, 1, ...: less by the decay each time, clipped at 0 (the reference lets it turn negative)."""
        return max(0.0, self.upper_weight - epoch * self.upper_weight_decay)


@dataclass(frozen=True, slots=True)
class Lora:
    """Train low-rank adapters instead of all weights.

    Args:
        rank: r.
        alpha: the adapters' output is scaled by alpha / r.
        targets: last parts of the names of the linear layers that get one.
        dropout: on the adapters' input.

    Raises:
        OptionError: a value that makes no sense.
    """

    rank: int = 16
    alpha: float = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        _require("rank", self.rank, _whole(self.rank) and self.rank > 0, "1 or more")
        _require("alpha", self.alpha, _number(self.alpha) and self.alpha > 0, "a number above 0")
        _require("targets", targets, bool(targets) and all(targets), "names such as q_proj")
        _require("dropout", self.dropout, _number(self.dropout) and 0 <= self.dropout < 1, "0 to 1")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(name: str, value: Any, fine: bool, wanted: str) -> None:
    if not fine:
        raise OptionError(f"{name}={value!r} makes no sense", fix=f"use {wanted}")
