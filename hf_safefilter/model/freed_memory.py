"""Keeping freed memory for the next forward, instead of giving it back to the kernel after each block.

A block's widest states are tens of megabytes, which glibc hands back as soon as they are freed; the next block then
faults every page in anew. On virtual machines that is a tenth of a forward.
"""

from __future__ import annotations

import torch

_LARGEST = 2**25 - 2**14  # bytes; glibc adapts itself to blocks of up to 32 MiB, its own header and alignment included


def keep_freed_memory() -> None:
    """Let glibc hold on to up to 64 MiB of freed memory.

    Its thresholds follow the largest block freed so far (`M_MMAP_THRESHOLD` in mallopt(3)), so one block is freed that
    was never touched and never cost a page. Whoever set them, by `MALLOC_TRIM_THRESHOLD_` or mallopt, keeps what was
    set; other allocators are not affected.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
