"""Fill in what is known, have the rest read piece by piece, keep it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from hf_safefilter.cache.pace import Pace
from hf_safefilter.cache.part import Rows, packed
from hf_safefilter.cache.read_rows import Reading
from hf_safefilter.cache.space import Space
from hf_safefilter.cache.store import SECONDS, open_layer
from hf_safefilter.columns import Layer

Read = Callable[[list[int], list[Layer]], Reading]


def recall(space: Space, reading: Reading, ids: Sequence[str], sizes: Sequence[int], read: Read) -> None:
    """Complete a reading: rows with a reason are left alone, each distinct other row is looked up, or read once.

    Args:
        space: what decides the vectors.
        reading: blank but for the reasons known so far; it is filled.
        ids: `row_id` of each row.
        sizes: how long each row is, in any unit.
        read: reads the rows at these positions in these layers.

    Raises:
        SafefilterError: what `read` raises, or the disk is full. Either way all pieces before are kept.
    """
    first: dict[str, int] = {}
    copies: dict[int, int] = {}
    for row, (one, reason) in enumerate(zip(ids, reading.reasons, strict=True)):
        if not reason and first.setdefault(one, row) != row:
            copies[row] = first[one]
    rows, keys = np.fromiter(first.values(), int, len(first)), packed(list(first))
    stores = {layer: open_layer(space, layer, v.shape[1], v.dtype.type) for layer, v in reading.vectors.items()}
    known = {layer: store.fetch(keys, reading, rows) for layer, store in stores.items()}
    lacking = {layer: store for layer, store in stores.items() if not known[layer].all()}
    missing = np.flatnonzero(~np.all(list(known.values()), axis=0))
    for piece in _pace(space).pieces(np.asarray(sizes)[rows[missing]]):
        at = missing[piece]
        began = time.monotonic()
        fresh = read(rows[at].tolist(), list(lacking))
        for layer, store in lacking.items():
            reading.put(rows[at], layer, fresh.vectors[layer], fresh.truncated, fresh.reasons)
            new = ~known[layer][at]
            store.add(Rows(keys[at][new], fresh.vectors[layer][new], fresh.truncated[new], fresh.reasons[new]), began)
            store.settle()
    for store in lacking.values():
        store.settle(call_ends=True)
    reading.repeat(copies)


@lru_cache(maxsize=8)
def _pace(space: Space) -> Pace:
    return Pace(SECONDS)
