"""How many tokens go through a model at once: enough to keep the device busy, no more than its memory holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hf_safefilter.model.load import Trunk

logger = logging.getLogger(__name__)

_PADDED, _PACKED = 512, 2048  # on a CPU, where the states of a batch should stay in its caches
_MPS = 8192
_MOST = 32768  # more rows than these do not make a matrix product faster
_SHARE = 0.7  # of the memory that is free
_STATES = 10  # vectors held for a token where a block needs most: input, norm, queries, keys, values, output


def token_budget(trunk: Trunk, packed: bool) -> int:
    """Number of tokens that a batch may hold, padding included. It decides speed and memory, never the vectors."""
    if trunk.token_budget is not None:
        return trunk.token_budget
    if trunk.device.type == "cuda":
        free = min(torch.cuda.mem_get_info(device)[0] for device in (trunk.device, *trunk.beside))
        trunk.token_budget = _for_memory(trunk, free)
        return trunk.token_budget
    return _MPS if trunk.device.type == "mps" else _PACKED if packed else _PADDED


def _for_memory(trunk: Trunk, free: int) -> int:
    config = trunk.model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * trunk.hidden_size
    numbers = _STATES * trunk.hidden_size + 3 * inner  # gate, up and their product
    budget = int(_SHARE * free) // (numbers * trunk.model.dtype.itemsize)
    logger.debug("%.1f GB are free on %s: batches of up to %d tokens", free / 1e9, trunk.device, min(budget, _MOST))
    return max(1, min(budget, _MOST))


def lower(trunk: Trunk, held: int) -> int:
    """From now on, half of the `held` tokens that ran out of memory."""
    trunk.token_budget = held // 2
    logger.warning("out of memory on %s: batches now hold at most %d tokens", trunk.device, trunk.token_budget)
    return trunk.token_budget
