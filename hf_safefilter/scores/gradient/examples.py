"""Rows -> what a loss is computed from: token ids, and which of them are labels."""

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
        labels: Which of them are labels, bool (length,); never the first.
        reason: Why there is no loss, or ""; with a reason, `ids` is empty.
    """

    ids: np.ndarray
    labels: np.ndarray
    reason: str = ""

    @property
    def first(self) -> int:
        """Position of the first label."""
        return int(np.argmax(self.labels))


def read_examples(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_length: int | None,
    chat_template: str | None,
    most: int | None = None,
) -> list[Example]:
    """One example per row: the labels are the tokens of all answers, with those by which the model would stop.

    Args:
        tokenizer: A fast tokenizer, that of the model.
        conversations: The rows.
        max_length: Largest number of tokens a row may have; a longer row is not read (``too_long``).
        chat_template: For a model without a chat template: a Jinja template, or "plain".
        most: Largest number of labels, counted from the first; None: no limit.
    """
    examples = []
    for row in tokenise(tokenizer, conversations, chat_template=chat_template):
        labels = row.labelled()
        places = np.flatnonzero(labels)[:most]
        too_long = max_length is not None and len(row.ids) > max_length
        reason = row.reason or ("too_long" if too_long else "" if len(places) else NO_LABELS)
        stop = 0 if reason else int(places[-1]) + 1
        examples.append(Example(row.ids[:stop], labels[:stop], reason))
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
    labelled = torch.zeros(ids.shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        labelled[row, : len(example.ids)] = torch.from_numpy(example.labels)
    start = min(example.first for example in examples)
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
