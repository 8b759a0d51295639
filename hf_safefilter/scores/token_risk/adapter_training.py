"""Training of an adapter: plain AdamW at a constant rate, all randomness drawn from the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from hf_safefilter.errors import ModelError
from hf_safefilter.model.threads import pick_threads, threads
from hf_safefilter.model.tokens import Tokens
from hf_safefilter.scores.token_risk.adapter_options import AdapterOptions
from hf_safefilter.scores.token_risk.label_losses import in_batches, label_losses
from hf_safefilter.scores.token_risk.two_adapters import TwoAdapters

_MAX_NORM = 1.0  # to which gradients are clipped, as trainers do


def train(adapters: TwoAdapters, name: str, rows: Sequence[Tokens], options: AdapterOptions) -> list[float]:
    """Train one adapter on `rows`, in place; the other one does not change.

    Args:
        adapters: The model.
        name: Which adapter.
        rows: Readable rows with a label each; only labels are learned.
        options: How it is trained.

    Returns:
        The mean loss over the labels of each step, in nats.

    Raises:
        ModelError: The loss became NaN or infinite.
    """
    from datasets.utils import tqdm

    adapters.use(name)
    weights = adapters.parameters(name)  # which need a gradient while their adapter is the active one
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)
    width, most = adapters.model.config.get_text_config().hidden_size, torch.get_num_threads()
    losses: list[float] = []
    with (
        threads(pick_threads(width, most) if adapters.model.device.type == "cpu" else most),
        tqdm(total=options.steps, desc=f"Train the {name} adapter", unit=" steps", leave=False) as bar,
    ):
        for batch in batches(len(rows), options):
            losses.append(_backward(adapters, weights, [rows[row] for row in batch]))
            if not math.isfinite(losses[-1]):  # every later step would give NaN weights
                raise ModelError(
                    f"the loss of the {name} adapter became {losses[-1]} at step {len(losses)}",
                    fix="use a lower `learning_rate=...`",
                )
            torch.nn.utils.clip_grad_norm_(weights, _MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
    return losses


def batches(count: int, options: AdapterOptions) -> Iterator[np.ndarray]:
    """Indices of the rows of each step: cut from shuffled passes over all rows, one after the other."""
    size = min(options.batch, count)
    passes = -(-options.steps * size // count)
    order = np.concatenate([np.random.default_rng([options.seed, one]).permutation(count) for one in range(passes)])
    for step in range(options.steps):
        yield order[step * size : (step + 1) * size]


def _backward(adapters: TwoAdapters, weights: Sequence[nn.Parameter], rows: Sequence[Tokens]) -> float:
    """Set the gradient of the mean loss over all labels of the rows, which is returned."""
    labels = sum(int(row.labelled().sum()) for row in rows)

    def run(part: list[Tokens]) -> tuple[float, tuple[torch.Tensor | None, ...]]:
        loss = label_losses(adapters.model, part, adapters.mask).sum() / labels
        # Nothing is added up before all of it is there. A layer that reads images has no gradient here.
        return loss.item(), torch.autograd.grad(loss, weights, allow_unused=True)

    total = 0.0
    for _, (loss, gradients) in in_batches(adapters.model, rows, run):
        total += loss
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
    return total
