"""Logits where they are wanted: the head, which is the dearest layer of a small model, runs nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logits_at(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None, places: torch.Tensor
) -> torch.Tensor:
    """Logits (n, places, vocabulary) at the same places of every row.

    Args:
        model: a causal language model; the head runs at those places alone where its forward takes `logits_to_keep`.
        ids: int64 (n, tokens).
        mask: attention mask (n, tokens); None: every token is seen by those after it.
        places: int64 (places,).
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=places).logits
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, places]


def right_padded(rows: Sequence[np.ndarray], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 (n, longest), whatever side the tokenizer would pad on."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.full_like(mask, pad)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.from_numpy(np.asarray(values, np.int64))
    return ids, mask
