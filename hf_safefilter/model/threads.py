"""How many threads a model of some width is read with: more are not always faster.

Each operation of a narrow model is shorter than the time it takes to wake a second thread; on shared cores the toy
model runs dozens of times slower with four threads than with one. The rule is fixed, not measured: another number of
threads rounds differently, and a second run must round as the first one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WIDE = 256  # from this width on the products are long enough for every thread to be worth waking


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside the block, compute with `count` threads; the former number is restored afterwards."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_threads(width: int, most: int) -> int:
    """1 for a narrow model, else `most`.

    Args:
        width: Width of the states between blocks.
        most: Number of threads that torch may use.
    """
    return most if width >= _WIDE else 1
