"""Examples -> scores: batches within a token budget, in one backward pass where this is exact, else row by row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import nn

from hf_safefilter.errors import ModelError
from hf_safefilter.model.threads import pick_threads, threads
from hf_safefilter.scores.gradient.batched import NotByRow, Rules, agrees, hooked, measure_rows, rules_of
from hf_safefilter.scores.gradient.examples import Example
from hf_safefilter.scores.gradient.meters import Meter
from hf_safefilter.scores.gradient.single_row import measure_row
from hf_safefilter.scores.gradient.tuned import Tuned

logger = logging.getLogger(__name__)

TOKENS = {"cpu": 1024, "mps": 4096, "cuda": 16384}
"""Number of tokens that a batch may hold, padding included, by kind of device. It never decides the scores."""

_LOGITS = {"cpu": 1 << 27, "mps": 1 << 27, "cuda": 1 << 30}  # number of logits that a batch may have

NAN_LOSS, ZERO_GRADIENT, NON_FINITE, LOW_LOSS = "nan_loss", "zero_gradient", "non_finite", "low_loss"
"""Reasons of rows whose loss or gradient gives no score."""

MakeMeter = Callable[[int], Meter]
Scored = tuple[np.ndarray, list[str]]
"""Scores float64 (n,), NaN for rows with a reason, and the reasons ("" for the other rows)."""


def measure(
    tuned: Tuned,
    examples: Sequence[Example],
    make_meter: MakeMeter,
    budget: int | None = None,
    above_loss: float | None = None,
) -> Scored:
    """The scores and reasons of all examples, in their order.

    Args:
        tuned: The model and the parameters whose gradient is taken.
        examples: One per row; an example with a reason is not read, and equal ones are computed once.
        make_meter: Makes the meter for a number of rows.
        budget: Number of tokens that a batch may hold, padding included; a batch has at least one row.
        above_loss: Only rows with a larger mean loss have a score, in nats per token; None: all have.

    Raises:
        ModelError: A single row does not fit in memory.
    """
    scores, reasons = np.full(len(examples), np.nan), [example.reason for example in examples]
    groups = _equal_rows(examples)
    order = sorted((rows[0] for rows in groups), key=lambda row: -len(examples[row].ids))
    rules = fast_rules(tuned) if order else None

    def run(batch: list[int]) -> Scored:
        return _measured(tuned, rules, [examples[row] for row in batch], make_meter, above_loss)

    with nullcontext() if rules is None else hooked(rules):
        for batch, scored in _batches(tuned, rules, examples, order, run, budget or _budget(tuned)):
            for row, score, reason in zip(batch, *scored, strict=True):
                scores[row], reasons[row] = score, reason
    for first, *rest in groups:
        for row in rest:
            scores[row], reasons[row] = scores[first], reasons[first]
    return scores, reasons


def _budget(tuned: Tuned) -> int:
    kind = tuned.device.type if tuned.device.type in TOKENS else "cpu"
    words = cast("nn.Linear", tuned.model.get_output_embeddings()).weight.shape[0]  # type: ignore[no-untyped-call]
    return max(1, min(TOKENS[kind], _LOGITS[kind] // words))


def _batches(
    tuned: Tuned,
    rules: Rules | None,
    examples: Sequence[Example],
    order: list[int],
    run: Callable[[list[int]], Scored],
    budget: int,
) -> Iterator[tuple[list[int], Scored]]:
    """Batches of row numbers with their scores; `order` has the longest rows first."""
    most = torch.get_num_threads()
    if tuned.device.type != "cpu":
        yield from _within_memory(tuned, examples, order, run, budget)
    elif rules is None:
        width = tuned.model.config.get_text_config().hidden_size
        with threads(pick_threads(width, most)):
            yield from ((batch, run(batch)) for batch in _cut(examples, order, budget))
    else:
        # One batch per thread: no operation waits for another thread, which keeps all busy on small models too.
        batches = list(_cut(examples, order, budget))
        workers = max(1, min(most, len(batches)))
        with (
            threads(most // workers),
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(most // workers,)) as pool,
        ):
            yield from zip(batches, pool.map(run, batches), strict=True)


def _cut(examples: Sequence[Example], order: list[int], budget: int) -> Iterator[list[int]]:
    """`order` in batches of as many rows as fit in `budget` tokens when padded."""
    while order:
        size = max(1, budget // len(examples[order[0]].ids))
        yield order[:size]
        order = order[size:]


def _within_memory(
    tuned: Tuned, examples: Sequence[Example], order: list[int], run: Callable[[list[int]], Scored], budget: int
) -> Iterator[tuple[list[int], Scored]]:
    """Batches of row numbers with their scores; when memory runs out, the budget is halved."""
    while order:
        batch = next(_cut(examples, order, budget))
        scored = _attempt(run, batch)
        if scored is not None:
            yield batch, scored
            order = order[len(batch) :]
            continue
        longest = len(examples[batch[0]].ids)
        if len(batch) == 1:
            raise ModelError(
                f"the gradient of one row of {longest} tokens does not fit in the memory of {tuned.device}",
                fix='use `parts="last_blocks"`, a smaller `max_length=...`, or `device="cpu"`',
            )
        budget = len(batch) * longest // 2
        logger.warning("out of memory on %s: batches now hold at most %d tokens", tuned.device, budget)
        if tuned.device.type == "cuda":
            torch.cuda.empty_cache()


def _attempt(run: Callable[[list[int]], Scored], batch: list[int]) -> Scored | None:
    """The scores of a batch; None if memory ran out. The failed attempt's tensors are freed with this call's frame."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        return None


def _measured(
    tuned: Tuned,
    rules: Rules | None,
    examples: Sequence[Example],
    make_meter: MakeMeter,
    above_loss: float | None = None,
) -> Scored:
    meter = make_meter(len(examples))
    if rules is not None:
        losses = measure_rows(tuned, rules, examples, meter)
    else:
        losses = np.array([measure_row(tuned, example, meter, row) for row, example in enumerate(examples)])
    scores, squares = meter.scores().numpy(), meter.squared_norms().numpy()
    if above_loss is not None:
        scores = np.where(losses > above_loss, scores, np.nan)
    return scores, [_reason(*values, above_loss) for values in zip(scores, losses, squares, strict=True)]


def _reason(score: float, loss: float, square: float, above_loss: float | None) -> str:
    if np.isfinite(score):
        return ""
    if not np.isfinite(loss):
        return NAN_LOSS
    if above_loss is not None and loss <= above_loss:
        return LOW_LOSS
    return ZERO_GRADIENT if square == 0 else NON_FINITE


@lru_cache(maxsize=1)
def fast_rules(tuned: Tuned) -> Rules | None:
    """The rules that separate this model's gradients by row; None, after a warning, if its rows cannot be separated."""
    try:
        rules = rules_of(tuned)
        if agrees(tuned, rules):
            return rules
        fact = "rows do not get the same gradients together as alone"
    except (NotByRow, RuntimeError) as error:  # a RuntimeError: torch cannot compute the derivative in this way
        if isinstance(error, torch.OutOfMemoryError):
            raise
        fact = str(error).splitlines()[0]
    name = type(tuned.model).__name__
    logger.warning("%s takes one row at a time, which is slower: %s", name, fact)
    return None


def _equal_rows(examples: Sequence[Example]) -> list[list[int]]:
    """Numbers of the rows without a reason, in groups of equal rows."""
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for row, example in enumerate(examples):
        if not example.reason:
            groups.setdefault((example.ids.tobytes(), example.labels.tobytes()), []).append(row)
    return list(groups.values())
