"""The loss of a sequence: mean negative log-likelihood of its labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hf_safefilter.scores.seal.training_rows import Labelled

_IGNORED = -100


def sequence_losses(model: torch.nn.Module, examples: Sequence[Labelled]) -> torch.Tensor:
    """Mean over the labels of each example, in nats: float32 (m,), differentiable."""
    device = next(model.parameters()).device
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        mask[row, : len(example.ids)] = 1
        labels[row, : len(example.ids)] = torch.from_numpy(np.where(example.labels, example.ids, _IGNORED))
    ids, mask, labels = ids.to(device), mask.to(device), labels[:, 1:].to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    token_losses = torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=_IGNORED, reduction="none")
    return token_losses.sum(dim=1) / (labels != _IGNORED).sum(dim=1)
