"""Random signs that are the same on every machine: a Rademacher projection drawn block by block from a seed.

The signs of a block of a parameter follow from (seed, parameter name, block number) by integer arithmetic only, so
vectors projected in different processes and on different devices can be compared; the signs are never stored.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch

BLOCK = 256
"""Number of entries of a flattened parameter in one block."""

_WORD = 64  # signs in one 64-bit word
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # of splitmix64, as int64


def signs(seed: int, name: str, block: int, width: int, device: torch.device) -> torch.Tensor:
    """+1 and -1, float32 (BLOCK, width); `width` is a multiple of 64."""
    drawn = hashlib.sha256(f"{seed}\0{name}\0{block}".encode()).digest()
    start = int.from_bytes(drawn[:8], "big", signed=True)
    count = torch.arange(1, BLOCK * width // _WORD + 1, device=device)
    words = _mixed(start + count * _STEP)
    shifts = torch.arange(0, _WORD, 8, device=device)
    octets = (words[:, None] >> shifts) & 255  # the shift is arithmetic; its copies of the sign lie above the octet
    return _octet_signs(device)[octets].view(BLOCK, width)


def project(flat: torch.Tensor, seed: int, name: str, width: int) -> torch.Tensor:
    """`flat` (n, entries) of the parameter `name`, times its signs; float32 (n, width)."""
    total = torch.zeros(len(flat), width, device=flat.device)
    for block, start in enumerate(range(0, flat.shape[1], BLOCK)):
        entries = flat[:, start : start + BLOCK].float()
        total += entries @ signs(seed, name, block, width, flat.device)[: entries.shape[1]]
    return total


def project_tokens(
    summed: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, count: int, seed: int, name: str, width: int
) -> torch.Tensor:
    """`project` for an embedding whose gradient is zero except at some tokens: only their blocks are drawn.

    Args:
        summed: Gradient vectors (m, dim), each of one row at one token.
        rows: The row of each vector, (m,).
        tokens: The token of each vector, (m,); a pair of row and token occurs once.
        count: Number of rows.
        seed: As in `project`.
        name: As in `project`.
        width: As in `project`.
    """
    total = torch.zeros(count, width, device=summed.device)
    dim = summed.shape[1]
    for token in torch.unique(tokens).tolist():
        chosen = tokens == token
        start, stop = token * dim, (token + 1) * dim
        first = start // BLOCK
        blocks = range(first, (stop - 1) // BLOCK + 1)
        drawn = torch.cat([signs(seed, name, block, width, summed.device) for block in blocks])
        token_signs = drawn[start - first * BLOCK : stop - first * BLOCK]
        total.index_add_(0, rows[chosen], summed[chosen].float() @ token_signs)
    return total


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64; int64 arithmetic wraps around, as unsigned 64-bit arithmetic does."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: torch.Tensor, by: int) -> torch.Tensor:
    return (words >> by) & ((1 << (64 - by)) - 1)


@lru_cache(maxsize=4)
def _octet_signs(device: torch.device) -> torch.Tensor:
    """The eight signs that each octet encodes, float32 (256, 8)."""
    octets = torch.arange(256, device=device)[:, None]
    return 1.0 - 2.0 * ((octets >> torch.arange(8, device=device)) & 1).float()
