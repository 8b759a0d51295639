"""The loss of every token that a trainer would learn, in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.nn import functional

from hf_safefilter.errors import ModelError
from hf_safefilter.model.logits import logits_at, right_padded
from hf_safefilter.model.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}  # tokens of a batch, padding included
_LOGITS = {"cpu": 1 << 27, "mps": 1 << 27, "cuda": 1 << 30}  # logits of a batch


def label_losses(model: PreTrainedModel, rows: Sequence[Tokens], mask: bool) -> torch.Tensor:
    """Negative log likelihood of each labelled token, float32 (labels of the first row, then of the second, ...).

    Args:
        model: Causal language model.
        rows: Rows with a label each; they are padded on the right.
        mask: Whether padding must be masked, which is not the case if every token sees only the tokens before it.
    """
    ids, attended = right_padded([row.ids for row in rows])
    labelled = torch.zeros(ids.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        labelled[index, : len(row.ids)] = torch.from_numpy(row.labelled())
    start = int(labelled.any(0).nonzero()[0])  # 1 or more: the first token is never learned
    device = model.device
    positions = torch.arange(start - 1, ids.shape[1] - 1, device=device)
    chosen = labelled[:, start:].to(device)
    ids = ids.to(device)
    logits = logits_at(model, ids, attended.to(device) if mask else None, positions)
    return functional.cross_entropy(logits[chosen].float(), ids[:, start:][chosen], reduction="none")


def in_batches(
    model: PreTrainedModel, rows: Sequence[Tokens], run: Callable[[list[Tokens]], Result]
) -> Iterator[tuple[list[int], Result]]:
    """Indices of rows and the result of `run` on them, longest first; when memory runs out, batches are halved.

    Args:
        model: What `run` reads the rows with.
        rows: All rows; how they fall into batches never decides a loss.
        run: Works on a batch; it may fail and be called again with fewer rows.

    Raises:
        ModelError: A single row does not fit in memory.
    """
    budget = _budget(model)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row].ids))
    while order:
        longest = len(rows[order[0]].ids)
        batch = order[: max(1, budget // longest)]
        found = _attempt(run, [rows[row] for row in batch])
        if found is not None:
            yield batch, found
            order = order[len(batch) :]
            continue
        if len(batch) == 1:
            raise ModelError(
                f"a single row of {longest} tokens does not fit in the memory of {model.device}",
                fix='read the references with a smaller `max_length=...`, or use `device="cpu"`',
            )
        budget = len(batch) * longest // 2
        logger.warning("out of memory on %s: batches now hold at most %d tokens", model.device, budget)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()


def _attempt(run: Callable[[list[Tokens]], Result], batch: list[Tokens]) -> Result | None:
    """The result of a batch; None if memory ran out. The failed attempt's tensors are freed with this call's frame."""
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        return None


def _budget(model: PreTrainedModel) -> int:
    """Number of tokens that a batch may hold, padding included."""
    kind = model.device.type if model.device.type in _TOKENS else "cpu"
    words = model.config.get_text_config().vocab_size
    return max(1, min(_TOKENS[kind], _LOGITS[kind] // words))
