"""The loss of a sequence: mean negative log-likelihood of its labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_safefilter.scores.seal.training_rows import Labelled

_IGNORED = -100


def sequence_losses(model: torch.nn.Module, examples: Sequence[Labelled]) -> torch.Tensor:
    """float32 (m,): mean over the labels of each row, in nats; differentiable."""
    device = next(model.parameters()).device
    longest = max(len(one.ids) for one in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    there = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for row, one in enumerate(examples):
        ids[row, : len(one.ids)] = torch.from_numpy(one.ids)
        there[row, : len(one.ids)] = 1
        labels[row, one.start : one.stop] = torch.from_numpy(one.ids[one.start : one.stop])
    ids, there, labels = ids.to(device), there.to(device), labels[:, 1:].to(device)
    logits = model(input_ids=ids, attention_mask=there, use_cache=False).logits[:, :-1].float()
    each = torch.nn.functional.cross_entropy(logits.mT, labels, ignore_index=_IGNORED, reduction="none")
    return each.sum(dim=1) / (labels != _IGNORED).sum(dim=1)
