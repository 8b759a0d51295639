"""Rows of tokens -> probabilities: batches within a token budget, one forward pass each, without generation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hf_safefilter.errors import ModelError
from hf_safefilter.model.logits import logits_at, right_padded
from hf_safefilter.model.threads import pick_threads, threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}
"""Number of tokens that a batch may hold, padding included, by kind of device. It never decides the scores."""


def answers(
    model: PreTrainedModel, rows: Sequence[np.ndarray], back: Sequence[int], tokens: Sequence[Sequence[int]]
) -> np.ndarray:
    """Probability of each word of each answer, among that answer's words; float64 (n, answers, words).

    Args:
        model: Causal guard model in eval mode.
        rows: Token ids of each row.
        back: For each answer, the number of tokens between its prediction and the end of the row.
        tokens: For each answer, the first token of each word.
    """
    offsets = torch.tensor(back)
    words = torch.tensor(tokens)

    def run(batch: list[np.ndarray]) -> np.ndarray:
        ids, mask = right_padded(batch, _pad(model))
        positions, inverse = torch.unique(mask.sum(1)[:, None] - 1 - offsets, return_inverse=True)
        logits = logits_at(model, ids.to(model.device), mask.to(model.device), positions.to(model.device)).cpu()
        chosen = logits[torch.arange(len(batch))[:, None, None], inverse[..., None], words]
        return chosen.double().softmax(-1).numpy()

    return _in_batches(model, rows, run, (len(back), len(tokens[0])), together=True)


def labels(model: PreTrainedModel, rows: Sequence[np.ndarray], exclusive: bool) -> np.ndarray:
    """Probability of each label of a classifier, float64 (n, labels).

    Args:
        model: Guard model with a classification head, in eval mode.
        rows: Token ids of each row.
        exclusive: Whether the labels exclude each other, so that their probabilities sum to 1.
    """

    def run(batch: list[np.ndarray]) -> np.ndarray:
        ids, mask = right_padded(batch, _pad(model))
        output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        logits: torch.Tensor = output.logits.cpu().double()
        return (logits.softmax(-1) if exclusive else logits.sigmoid()).numpy()

    # Without a padding token, a classifier does not know where a row ends.
    together = model.config.get_text_config().pad_token_id is not None
    n_labels = cast("int", model.config.num_labels)  # None is only its value before the configuration is complete
    return _in_batches(model, rows, run, (n_labels,), together)


def _in_batches(
    model: PreTrainedModel,
    rows: Sequence[np.ndarray],
    run: Callable[[list[np.ndarray]], np.ndarray],
    shape: tuple[int, ...],
    together: bool,
) -> np.ndarray:
    """`run` on all rows, longest first, in batches if `together`; when memory runs out, the budget is halved."""
    probabilities = np.full((len(rows), *shape), np.nan)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    kind, most = model.device.type, torch.get_num_threads()
    budget = TOKENS.get(kind, TOKENS["cpu"])
    width = getattr(model.config.get_text_config(), "hidden_size", 4096)
    with torch.inference_mode(), threads(pick_threads(width, most) if kind == "cpu" else most):
        while order:
            longest = len(rows[order[0]])
            batch = order[: max(1, budget // longest) if together else 1]
            values = _attempt(run, [rows[row] for row in batch])
            if values is not None:
                probabilities[batch] = values
                order = order[len(batch) :]
                continue
            if len(batch) == 1:
                raise ModelError(
                    f"a single row of {longest} tokens does not fit in the memory of {model.device}",
                    fix='use a smaller `max_length=...`, `dtype="bfloat16"`, or `device="cpu"`',
                )
            budget = len(batch) * longest // 2
            logger.warning("out of memory on %s: batches now hold at most %d tokens", model.device, budget)
            if kind == "cuda":
                torch.cuda.empty_cache()
    return probabilities


def _attempt(run: Callable[[list[np.ndarray]], np.ndarray], batch: list[np.ndarray]) -> np.ndarray | None:
    """The result of a batch; None if memory ran out. The failed attempt's tensors are freed with this call's frame."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        return None


def _pad(model: PreTrainedModel) -> int:
    return model.config.get_text_config().pad_token_id or 0
