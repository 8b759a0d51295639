"""Keeping freed memory for the next forward pass, instead of returning it to the kernel after each block; or not.

A block's widest states are tens of megabytes, which glibc returns to the kernel as soon as they are freed; the next
block then faults every page in again. On virtual machines this takes a tenth of a forward pass.
"""

from __future__ import annotations

import ctypes
import gc
import os

import torch

_LARGEST = 2**25 - 2**14  # bytes; glibc adapts to blocks of up to 32 MiB, which include its own header and alignment


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory.

    Its thresholds follow the largest block freed so far (`M_MMAP_THRESHOLD` in mallopt(3)), so one block is freed that
    was never touched and so never took a page. Thresholds that were set explicitly, by `MALLOC_TRIM_THRESHOLD_` or
    mallopt, stay as they are; other allocators are not affected.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)


def return_freed_memory() -> None:
    """Let glibc return what is free in its heap: where blocks are loaded in turn, each would find its holes too small.

    Other C libraries are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def give_back(device: torch.device) -> None:
    """Free what nobody holds any more: models hold themselves in circles, and torch keeps a GPU's memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
