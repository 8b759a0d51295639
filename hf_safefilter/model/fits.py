"""Where a model has room: on one device, spread over several, or on none, so that its blocks are loaded in turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.memory_available import memory_available
from hf_safefilter.model.source import explained
from hf_safefilter.model.text_tower import empty_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

_WEIGHTS = 0.9  # share of the free memory; the rest is for states
_LARGER = 4  # times as large as its files a model may be in memory


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the blocks of a model are.

    Attributes:
        streamed: In their files, and each is loaded for all rows of a pass.
        shares: So many on each of these devices, if on several.
    """

    streamed: bool = False
    shares: tuple[tuple[torch.device, int], ...] = ()


def place(
    name: str, config: PreTrainedConfig, dtype: str, devices: Sequence[torch.device], files: int | None
) -> Placement:
    """Where a model of this configuration goes; on the first device as well where its memory is not known.

    Args:
        name: The model, for messages.
        config: Its configuration, with the blocks that are to be held.
        dtype: "float32", "bfloat16" or "float16".
        devices: Where it is to be held: all of it on the first one, or else spread over all.
        files: Bytes of its files, if they are known: of a small model nothing else is looked at.
    """
    import torch

    free = [memory_available(device) for device in devices]
    if free[0] is None or (files is not None and _LARGER * files < free[0]):
        return Placement()
    with explained(name):
        model = empty_model(config)
        blocks = find_blocks(model).blocks
    width = getattr(torch, dtype).itemsize
    needed = sum(weight.numel() for weight in model.parameters()) * width
    if needed <= _WEIGHTS * free[0]:
        return Placement()
    of_blocks = [sum(weight.numel() for weight in block.parameters()) * width for block in blocks]
    room = [_WEIGHTS * (bytes_free or 0) for bytes_free in free]
    room[0] -= needed - sum(of_blocks)  # embeddings
    shares = even_shares(len(blocks), [max(0, int(bytes_free // max(of_blocks))) for bytes_free in room])
    if len(devices) > 1 and shares is not None:
        return Placement(shares=tuple(zip(devices, shares, strict=True)))
    logger.warning(
        "%d blocks of %s take %.1f GB and %.1f GB are free on %s: each is read from disk once for many rows",
        config.num_hidden_layers, name, needed / 1e9, sum(bytes_free or 0 for bytes_free in free) / 1e9,
        ", ".join(map(str, devices)),
    )  # fmt: skip
    return Placement(streamed=True)


def even_shares(count: int, room: Sequence[int]) -> list[int] | None:
    """`count` blocks over devices with `room` for so many each, as evenly as that allows; None if it is too little."""
    if sum(room) < count:
        return None
    shares = [0] * len(room)
    for _ in range(count):
        open_ones = [at for at in range(len(room)) if shares[at] < room[at]]
        shares[min(open_ones, key=lambda at: shares[at])] += 1
    return shares
