"""How many threads a model of some width is best read with: measured, because more are not always faster.

Each operation of a small model is shorter than the time it takes to wake a second thread; on shared cores the toy model
runs dozens of times slower with four threads than with one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from hf_safefilter.model.measured import remembered

_TOKENS = 512
_WIDE = 512  # from this width on the products are long enough for every thread to earn its keep


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside the block; what was set before comes back after it."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=8)
def pick_threads(width: int, most: int) -> int:
    """1 or `most`, whichever does a block's kind of work faster at this width; measured once a machine.

    Args:
        width: of the states between blocks.
        most: threads that torch may use.
    """
    if most == 1 or width >= _WIDE:
        return most
    found = remembered(f"threads for width {width}, 1 or {most}", lambda: _faster(width, most))
    return found if found in (1, most) else most


def _faster(width: int, most: int) -> int:
    with torch.inference_mode():
        states, weight = torch.randn(_TOKENS, width), torch.randn(2 * width, width)
        seconds = {count: _seconds(count, states, weight) for count in (1, most)}
    return min(seconds, key=seconds.__getitem__)


def _seconds(count: int, states: torch.Tensor, weight: torch.Tensor) -> float:
    with threads(count):
        taken = []
        for _ in range(8):
            begin = time.perf_counter()
            scaled = states * torch.rsqrt((states * states).mean(-1, keepdim=True) + 1e-6)
            gate, up = (scaled @ weight.T).chunk(2, dim=-1)
            (torch.nn.functional.silu(gate) * up).sum()
            taken.append(time.perf_counter() - begin)
    return min(taken[1:])  # a neighbour's burst must not decide for the rest of the process
