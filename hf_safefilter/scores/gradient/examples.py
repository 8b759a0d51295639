"""Rows -> what a loss is taken on: token ids, and from where on they are labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.model.logits import logits_at, right_padded
from hf_safefilter.model.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LABELS = "no_label_tokens"
"""Reason of a row that has no token to predict."""

_IGNORED = -100


@dataclass(slots=True)
class Example:
    """A row as a loss sees it.

    Attributes:
        ids: token ids up to the last label, int32 (length,): what comes after it changes nothing.
        first: place of the first label, 1 or more.
        reason: "" or why there is no loss; then `ids` is empty.
    """

    ids: np.ndarray
    first: int = 1
    reason: str = ""


def read_examples(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_length: int | None,
    chat_template: str | None,
    most: int | None = None,
) -> list[Example]:
    """The labels are the response's tokens and the one after it, by which the model would stop; rows in = rows out.

    Args:
        tokenizer: of the model; a fast one.
        conversations: from `rows.conversations`.
        max_length: longest row in tokens; the middle of longer responses is cut.
        chat_template: for a model that has none.
        most: only so many labels, from the response's first token on.
    """
    read = tokenise(
        tokenizer, conversations, position="mean_response", max_length=max_length, chat_template=chat_template
    )
    found = []
    for row in read:
        first = max(1, row.start)  # nothing stands before the first token to predict it from
        stop = min(len(row.ids), row.stop + 1)
        stop = stop if most is None else min(stop, first + most)
        reason = row.reason or ("" if stop > first else NO_LABELS)
        found.append(Example(row.ids[:0] if reason else row.ids[:stop], first, reason))
    return found


def row_losses(model: PreTrainedModel, examples: Sequence[Example], mask: bool) -> torch.Tensor:
    """Mean negative log likelihood of each row's labels, (n,), float32 or wider; rows are padded on the right.

    Args:
        model: a causal language model that takes `logits_to_keep`, or not.
        examples: readable ones.
        mask: whether padding must be masked: not where every token sees those before it alone.
    """
    device = model.get_input_embeddings().weight.device
    ids, seen = right_padded([one.ids for one in examples])
    first = torch.tensor([one.first for one in examples])
    labelled = (torch.arange(ids.shape[1]) >= first[:, None]) & seen.bool()
    start = int(first.min())
    labels = torch.where(labelled, ids, _IGNORED)[:, start:].to(device)
    places = torch.arange(start - 1, ids.shape[1] - 1, device=device)
    logits = logits_at(model, ids.to(device), seen.to(device) if mask else None, places)
    each = functional.cross_entropy(
        _wide(logits).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=_IGNORED
    )
    return each.view(labels.shape).sum(1) / labelled.sum(1).to(device)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
