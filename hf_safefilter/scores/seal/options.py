"""How a selector is fitted: the published defaults, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hf_safefilter.checks import is_finite, require_choice, require_number, require_share, require_whole
from hf_safefilter.errors import OptionError

ACTIVATIONS = ("softmax", "sigmoid")
SELECTOR_RATES = {"adam": 5e-3, "sgd": 1.0}
"""Optimiser of the logits -> its learning rate, unless another is given."""

DTYPES = ("auto", "float32", "bfloat16")
_SHORTEST = 8  # tokens


@dataclass(frozen=True, slots=True)
class SealOptions:
    """The numbers of a fit; the defaults are those published for Llama-3-8B-Instruct.

    Args:
        activation: How logits become weights: "softmax" (weights of mean 1 over all rows) or "sigmoid" (0 to 2 each).
        auxiliary: Train a second model on the weighted rows alone, and judge a row by how much lower its loss is in
            that model (Algorithm 1, twice the work); without it, by the loss itself (Algorithm 2).
        epochs: Number of passes over the rows. The safe rows are repeated as often as necessary.
        learning_rate: Learning rate of the model.
        selector_optimiser: Optimiser of the logits. "adam" as published: a logit that is not in the batch rises by the
            same step whatever its gradient, so in a short run the order of visits decides most of the ranking. "sgd" is
            ours: plain descent along the same gradient, so that logits rank rows by the losses that were measured.
        selector_learning_rate: Learning rate of the logits; None: 5e-3 for "adam", 1.0 for "sgd".
        upper_weight: u, the share (0 to 1) of the safe loss in the loss of the model; at 1 the model never learns from
            the weighted rows.
        upper_weight_decay: How much u falls after each epoch; it never falls below 0.
        batch_size: Number of rows, and of safe rows, in an optimiser step, over all processes.
        micro_batch: Number of rows in one forward pass; lower it when memory is short.
        max_length: Largest number of tokens a row may have; None: the limit of the model. The middle of a longer
            response is cut.
        dtype: "bfloat16" computes in mixed precision, with trained weights in float32. "auto": float32 on a CPU,
            bfloat16 on a GPU that supports it.
        seed: Seed of the order of rows, of adapters and of dropout.

    Raises:
        OptionError: A value is not allowed.
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
        _use_plain_numbers(self)
        for name, known in (("activation", ACTIVATIONS), ("selector_optimiser", SELECTOR_RATES), ("dtype", DTYPES)):
            require_choice(name, getattr(self, name), known)
        set_field = object.__setattr__
        if self.selector_learning_rate is None:
            set_field(self, "selector_learning_rate", SELECTOR_RATES[self.selector_optimiser])
        for name in ("epochs", "batch_size", "micro_batch"):
            require_whole(name, getattr(self, name), least=1)
        for name in ("learning_rate", "selector_learning_rate"):
            require_number(name, getattr(self, name), above=0)
        require_number("upper_weight", self.upper_weight, least=0, most=1)
        require_number("upper_weight_decay", self.upper_weight_decay, least=0)
        if self.max_length is not None:
            require_whole("max_length", self.max_length, least=_SHORTEST)
        require_whole("seed", self.seed, least=0, most=2**31 - 1)

    @property
    def selector_rate(self) -> float:
        """The learning rate of the logits: the one given, or the default of their optimiser."""
        rate = self.selector_learning_rate
        return SELECTOR_RATES[self.selector_optimiser] if rate is None else rate

    def upper_weight_at(self, epoch: int) -> float:
        """u in epoch 0, 1, ...: less by the decay each time, clipped at 0 (in the reference code it turns negative)."""
        return max(0.0, self.upper_weight - epoch * self.upper_weight_decay)


@dataclass(frozen=True, slots=True)
class Lora:
    """Train low-rank adapters instead of all weights.

    Args:
        rank: Rank of the adapters, r.
        alpha: The output of the adapters is scaled by alpha / r.
        targets: Last parts of the names of the linear layers that get an adapter.
        dropout: Dropout probability on the input of the adapters.

    Raises:
        OptionError: A value is not allowed.
    """

    rank: int = 16
    alpha: float = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _use_plain_numbers(self)
        given: Any = self.targets
        targets = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "targets", targets)
        require_whole("rank", self.rank, least=1)
        require_number("alpha", self.alpha, above=0)
        if not targets or not all(targets):
            raise OptionError(f"`targets={targets!r}` names no layers", fix='use for example `targets=("q_proj",)`')
        if not is_finite(self.dropout) or self.dropout != 0:
            require_share("dropout", self.dropout)


def _use_plain_numbers(options: SealOptions | Lora) -> None:
    """Turn NumPy numbers into Python's own, as options are written as JSON."""
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(options, field.name, value.item())
