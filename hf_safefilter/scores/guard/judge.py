"""Rows of tokens -> probabilities: batches under a token budget, one forward each, nothing generated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_safefilter.errors import ModelError
from hf_safefilter.model.logits import logits_at, right_padded
from hf_safefilter.model.threads import pick_threads, threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}
"""Tokens a batch may hold, padding included, by kind of device. It decides speed and memory, never the scores."""


def answers(
    model: PreTrainedModel, rows: Sequence[np.ndarray], back: Sequence[int], tokens: Sequence[Sequence[int]]
) -> np.ndarray:
    """Probability of each word of each answer, among that answer's words; float64 (n, answers, words).

    Args:
        model: a causal guard in eval mode.
        rows: token ids.
        back: for each answer, how many tokens before the end of a row it is predicted.
        tokens: for each answer, the token that each word starts with.
    """
    before = torch.tensor(back)
    wanted = torch.tensor(tokens)

    def run(batch: list[np.ndarray]) -> np.ndarray:
        ids, mask = right_padded(batch, _pad(model))
        places = mask.sum(1)[:, None] - 1 - before
        needed, where = places.unique(return_inverse=True)
        logits = logits_at(model, ids.to(model.device), mask.to(model.device), needed.to(model.device)).cpu()
        chosen = logits[torch.arange(len(batch))[:, None, None], where[..., None], wanted]
        return chosen.double().softmax(-1).numpy()

    return _in_batches(model, rows, run, (len(back), len(tokens[0])), together=True)


def labels(model: PreTrainedModel, rows: Sequence[np.ndarray], exclusive: bool) -> np.ndarray:
    """Probability of each label, float64 (n, labels): of a classifier whose labels exclude each other, or do not."""

    def run(batch: list[np.ndarray]) -> np.ndarray:
        ids, mask = right_padded(batch, _pad(model))
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.cpu().double()
        return (logits.softmax(-1) if exclusive else logits.sigmoid()).numpy()

    # Without a padding token a classifier cannot tell where a row ends.
    together = model.config.get_text_config().pad_token_id is not None
    return _in_batches(model, rows, run, (model.config.num_labels,), together)


def _in_batches(
    model: PreTrainedModel,
    rows: Sequence[np.ndarray],
    run: Callable[[list[np.ndarray]], np.ndarray],
    shape: tuple[int, ...],
    together: bool,
) -> np.ndarray:
    """`run` over all rows, longest first, or each alone; on running out of memory halve the budget and go on."""
    found = np.full((len(rows), *shape), np.nan)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    kind, most = model.device.type, torch.get_num_threads()
    budget = TOKENS.get(kind, TOKENS["cpu"])
    width = getattr(model.config.get_text_config(), "hidden_size", 4096)
    with torch.inference_mode(), threads(pick_threads(width, most) if kind == "cpu" else most):
        while order:
            longest = len(rows[order[0]])
            batch = order[: max(1, budget // longest) if together else 1]
            got = _attempt(run, [rows[row] for row in batch])
            if got is not None:
                found[batch] = got
                order = order[len(batch) :]
                continue
            if len(batch) == 1:
                raise ModelError(
                    f"a single row of {longest} tokens does not fit in the memory of {model.device}",
                    fix="pass a smaller max_length, dtype='bfloat16', or device='cpu'",
                )
            budget = len(batch) * longest // 2
            logger.warning("out of memory on %s: batches now hold at most %d tokens", model.device, budget)
            if kind == "cuda":
                torch.cuda.empty_cache()
    return found


def _attempt(run: Callable[[list[np.ndarray]], np.ndarray], batch: list[np.ndarray]) -> np.ndarray | None:
    """What the batch gave; None where memory ran out. The failed attempt's tensors go with this call's frame."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        return None


def _pad(model: PreTrainedModel) -> int:
    return model.config.get_text_config().pad_token_id or 0
