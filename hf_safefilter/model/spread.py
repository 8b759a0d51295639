"""A model whose blocks lie on several GPUs, which no one of them holds.

GPUs work on their own: while one is busy with its blocks for a batch, the one before it begins with the next batch. The
process only queues their work, and waits for none of it before vectors are fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from hf_safefilter.model.left_out import LeftOut

logger = logging.getLogger(__name__)


def spread(left_out: LeftOut, shares: Sequence[tuple[torch.device, int]]) -> None:
    """Load each block whose weights are left out on its device, in order; there it stays.

    Args:
        left_out: The weights of all blocks.
        shares: Devices and numbers of blocks, all of them together.

    Raises:
        ModelError: The files lack weights.
    """
    stack = left_out.stack
    devices = [device for device, count in shares for _ in range(count)]
    for number, (block, device) in enumerate(zip(stack.blocks, devices, strict=True)):
        left_out.load(number, device)
        block.register_forward_pre_hook(_moving(device), with_kwargs=True)  # before any hook that reads states
    if stack.final_norm is not None:
        stack.final_norm.to(devices[-1])
    words = ", ".join(f"{count} on {device}" for device, count in shares if count)
    logger.info("the blocks of %s are spread: %s", left_out.key.model, words)


def _moving(device: torch.device) -> Any:
    def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _moved(args, device), _moved(kwargs, device)

    return move


def _moved(value: Any, device: torch.device) -> Any:
    """What a block is called with, on its device: states, rotations, masks."""
    if isinstance(value, torch.Tensor):
        return to(value, device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(part, device) for part in value)
    return value


def to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor itself if it is there, else a copy in the order of both devices' own work."""
    return tensor.to(device, non_blocking=True)
