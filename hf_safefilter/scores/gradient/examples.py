"""Rows -> what a loss is computed from: token ids, and the position from which on they are labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn import functional

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.model.logits import logits_at, right_padded
from hf_safefilter.model.tokens import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LABELS = "no_label_tokens"
"""Reason of a row without a token to predict."""

_IGNORED = -100


@dataclass(slots=True)
class Example:
    """The tokens and labels of a row.

    Attributes:
        ids: Token ids up to the last label, int32 (length,); tokens after it do not affect the loss.
        first: Position of the first label, at least 1.
        reason: Why there is no loss, or ""; with a reason, `ids` is empty.
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
    """One example per row: the labels are the response's tokens and the one after it, by which the model would stop.

    Args:
        tokenizer: A fast tokenizer, that of the model.
        conversations: The rows.
        max_length: Largest number of tokens a row may have; the middle of longer responses is cut.
        chat_template: For a model without a chat template: a Jinja template, or "plain".
        most: Largest number of labels, counted from the response's first token; None: no limit.
    """
    rows = tokenise(
        tokenizer, conversations, position="mean_response", max_length=max_length, chat_template=chat_template
    )
    examples = []
    for row in rows:
        first = max(1, row.start)  # the first token has no token before it from which it could be predicted
        stop = min(len(row.ids), row.stop + 1)
        stop = stop if most is None else min(stop, first + most)
        reason = row.reason or ("" if stop > first else NO_LABELS)
        examples.append(Example(row.ids[:0] if reason else row.ids[:stop], first, reason))
    return examples


def row_losses(model: PreTrainedModel, examples: Sequence[Example], mask: bool) -> torch.Tensor:
    """Mean negative log likelihood of each row's labels, (n,), float32 or wider; rows are padded on the right.

    Args:
        model: Causal language model, whether or not its forward takes `logits_to_keep`.
        examples: Examples without a reason.
        mask: Whether padding must be masked, which is not the case if every token sees only the tokens before it.
    """
    device = embedding_of(model).weight.device
    ids, attended = right_padded([example.ids for example in examples])
    first = torch.tensor([example.first for example in examples])
    labelled = (torch.arange(ids.shape[1]) >= first[:, None]) & attended.bool()
    start = int(first.min())
    labels = torch.where(labelled, ids, _IGNORED)[:, start:].to(device)
    positions = torch.arange(start - 1, ids.shape[1] - 1, device=device)
    logits = logits_at(model, ids.to(device), attended.to(device) if mask else None, positions)
    losses = functional.cross_entropy(
        _wide(logits).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=_IGNORED
    )
    return losses.view(labels.shape).sum(1) / labelled.sum(1).to(device)


def embedding_of(model: PreTrainedModel) -> torch.nn.Embedding:
    """The embedding of the model's input tokens."""
    return cast("torch.nn.Embedding", model.get_input_embeddings())  # transformers types it as any module


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
