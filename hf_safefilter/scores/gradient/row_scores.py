"""Examples -> scores: batches under a token budget, the fast way where it is exact, else row by row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import torch

from hf_safefilter.errors import ModelError
from hf_safefilter.model.threads import pick_threads, threads
from hf_safefilter.scores.gradient.batched import NotByRow, Rules, agrees, hooked, measure_rows, rules
from hf_safefilter.scores.gradient.examples import Example
from hf_safefilter.scores.gradient.meters import Meter
from hf_safefilter.scores.gradient.plain import measure_row
from hf_safefilter.scores.gradient.tuned import Tuned

logger = logging.getLogger(__name__)

TOKENS = {"cpu": 1024, "mps": 4096, "cuda": 16384}
"""Tokens a batch may hold, padding included, by kind of device. It decides speed and memory, never the scores."""

_LOGITS = {"cpu": 1 << 27, "mps": 1 << 27, "cuda": 1 << 30}  # entries of logits that a batch may hold

NAN_LOSS, ZERO_GRADIENT, NON_FINITE = "nan_loss", "zero_gradient", "non_finite"
"""Reasons of rows whose loss or gradient says nothing."""

MakeMeter = Callable[[int], Meter]
Found = tuple[np.ndarray, list[str]]


def measure(tuned: Tuned, examples: Sequence[Example], make_meter: MakeMeter, budget: int | None = None) -> Found:
    """Scores float64 (n,), NaN where there is a reason, and the reasons ("" where there is none); in the rows' order.

    Args:
        tuned: the model and the parameters that count.
        examples: one a row; one with a reason is not read, equal ones are computed once.
        make_meter: given a number of rows, what takes their gradients.
        budget: tokens a batch may hold; at least one row always goes in.

    Raises:
        ModelError: a single row does not fit in memory.
    """
    scores, reasons = np.full(len(examples), np.nan), [one.reason for one in examples]
    copies = _copies(examples)
    order = sorted((rows[0] for rows in copies), key=lambda row: -len(examples[row].ids))
    known = fast_rules(tuned) if order else None
    with nullcontext() if known is None else hooked(known):
        for batch, found in _batches(tuned, known, examples, order, make_meter, budget or _budget(tuned)):
            for row, score, reason in zip(batch, *found, strict=True):
                scores[row], reasons[row] = score, reason
    for first, *rest in copies:
        for row in rest:
            scores[row], reasons[row] = scores[first], reasons[first]
    return scores, reasons


def _budget(tuned: Tuned) -> int:
    kind = tuned.device.type if tuned.device.type in TOKENS else "cpu"
    words = tuned.model.get_output_embeddings().weight.shape[0]
    return max(1, min(TOKENS[kind], _LOGITS[kind] // words))


def _batches(
    tuned: Tuned,
    known: Rules | None,
    examples: Sequence[Example],
    order: list[int],
    make_meter: MakeMeter,
    budget: int,
) -> Iterator[tuple[list[int], Found]]:
    """What each batch of rows gave; `order` has the longest rows first."""
    most = torch.get_num_threads()

    def run(batch: list[int]) -> Found:
        return _measured(tuned, known, [examples[row] for row in batch], make_meter)

    if tuned.device.type != "cpu":
        yield from _while_memory_lasts(tuned, examples, order, run, budget)
    elif known is None:
        width = tuned.model.config.get_text_config().hidden_size
        with threads(pick_threads(width, most)):
            yield from ((batch, run(batch)) for batch in _cut(examples, order, budget))
    else:
        # A batch to each thread: no operation waits for another thread, which keeps them all busy on small models too.
        cut = list(_cut(examples, order, budget))
        workers = max(1, min(most, len(cut)))
        with (
            threads(most // workers),
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(most // workers,)) as pool,
        ):
            yield from zip(cut, pool.map(run, cut), strict=True)


def _cut(examples: Sequence[Example], order: list[int], budget: int) -> Iterator[list[int]]:
    """`order` in batches of as many rows as fit in `budget` tokens once they are padded."""
    while order:
        size = max(1, budget // len(examples[order[0]].ids))
        yield order[:size]
        order = order[size:]


def _while_memory_lasts(
    tuned: Tuned, examples: Sequence[Example], order: list[int], run: Callable[[list[int]], Found], budget: int
) -> Iterator[tuple[list[int], Found]]:
    """Batch after batch; on running out of memory halve the budget and go on."""
    while order:
        batch = next(_cut(examples, order, budget))
        found = _attempt(run, batch)
        if found is not None:
            yield batch, found
            order = order[len(batch) :]
            continue
        longest = len(examples[batch[0]].ids)
        if len(batch) == 1:
            raise ModelError(
                f"the gradient of one row of {longest} tokens does not fit in the memory of {tuned.device}",
                fix="use parts='last_blocks', a smaller max_length, or device='cpu'",
            )
        budget = len(batch) * longest // 2
        logger.warning("out of memory on %s: batches now hold at most %d tokens", tuned.device, budget)
        if tuned.device.type == "cuda":
            torch.cuda.empty_cache()


def _attempt(run: Callable[[list[int]], Found], batch: list[int]) -> Found | None:
    """What the batch gave; None where memory ran out. The failed attempt's tensors go with this call's frame."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        return None


def _measured(tuned: Tuned, known: Rules | None, examples: Sequence[Example], make_meter: MakeMeter) -> Found:
    meter = make_meter(len(examples))
    if known is not None:
        losses = measure_rows(tuned, known, examples, meter)
    else:
        losses = np.array([measure_row(tuned, example, meter, row) for row, example in enumerate(examples)])
    scores, squares = meter.scores().numpy(), meter.squared_norms().numpy()
    return scores, [_reason(*found) for found in zip(scores, losses, squares, strict=True)]


def _reason(score: float, loss: float, square: float) -> str:
    if np.isfinite(score):
        return ""
    return NAN_LOSS if not np.isfinite(loss) else ZERO_GRADIENT if square == 0 else NON_FINITE


@lru_cache(maxsize=1)
def fast_rules(tuned: Tuned) -> Rules | None:
    """The rules by which this model's rows are told apart in one backward; None where they cannot be (said once)."""
    try:
        known = rules(tuned)
        if agrees(tuned, known):
            return known
        fact = "rows do not come out the same together as alone"
    except (NotByRow, RuntimeError) as error:  # a RuntimeError: torch cannot take the derivative in this way
        if isinstance(error, torch.OutOfMemoryError):
            raise
        fact = str(error).splitlines()[0]
    name = type(tuned.model).__name__
    logger.warning("%s takes one row at a time, which is slower: %s", name, fact)
    return None


def _copies(examples: Sequence[Example]) -> list[list[int]]:
    """The readable rows, equal ones together."""
    groups: dict[tuple[bytes, int], list[int]] = {}
    for row, one in enumerate(examples):
        if not one.reason:
            groups.setdefault((one.ids.tobytes(), one.first), []).append(row)
    return list(groups.values())
