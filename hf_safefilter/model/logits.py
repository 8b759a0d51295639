"""Logits only where they are needed: the head, the most expensive layer of a small model, runs nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logits_at(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
) -> torch.Tensor:
    """Logits `(n, positions, vocabulary)` at the same positions of every row.

    Args:
        model: Causal language model; its head runs only at those positions if its forward takes `logits_to_keep`.
        ids: Token ids, int64 `(n, tokens)`.
        mask: Attention mask `(n, tokens)`; None: every token is seen by those after it.
        positions: int64 `(positions,)`.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        output = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions)
        return cast("torch.Tensor", output.logits)  # calls of a module are untyped
    output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    return cast("torch.Tensor", output.logits[:, positions])


def right_padded(rows: Sequence[np.ndarray], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 `(n, longest)`, padded on the right whatever the tokenizer's own side is."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.full_like(mask, pad)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.from_numpy(np.asarray(values, np.int64))
    return ids, mask
