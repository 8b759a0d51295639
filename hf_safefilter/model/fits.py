"""Whether a model fits in the memory of a device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hf_safefilter.model.memory_available import memory_available
from hf_safefilter.model.source import explained
from hf_safefilter.model.text_tower import empty_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

_WEIGHTS = 0.9  # share of the free memory; the rest is for states
_LARGER = 4  # times as large as its files a model may be in memory


def fits(name: str, config: PreTrainedConfig, dtype: str, device: torch.device, files: int | None) -> bool:
    """Whether `device` holds a model of this configuration; true as well where its memory is not known.

    Args:
        name: The model, for messages.
        config: Its configuration, with the blocks that are to be held.
        dtype: "float32", "bfloat16" or "float16".
        device: Where it is to be held.
        files: Bytes of its files, if they are known: of a small model nothing else is looked at.
    """
    import torch

    free = memory_available(device)
    if free is None or (files is not None and _LARGER * files < free):
        return True
    with explained(name):
        model = empty_model(config)
    needed = sum(weight.numel() for weight in model.parameters()) * getattr(torch, dtype).itemsize
    if needed <= _WEIGHTS * free:
        return True
    logger.warning(
        "%d blocks of %s take %.1f GB and %.1f GB are free on %s: each is read from disk once for many rows",
        config.num_hidden_layers, name, needed / 1e9, free / 1e9, device,
    )  # fmt: skip
    return False
