"""Gather the vectors that are cached, have the others read piece by piece, and cache them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from hf_safefilter.cache.pace import Pace
from hf_safefilter.cache.part import StoredRows, packed
from hf_safefilter.cache.row_vectors import Gathering, RowVectors
from hf_safefilter.cache.space import Space
from hf_safefilter.cache.store import SECONDS, open_layer
from hf_safefilter.columns import Layer
from hf_safefilter.data.ragged import Ragged

Read = Callable[[list[int], list[Layer]], RowVectors]


def recall(
    space: Space,
    target: Gathering,
    ids: Sequence[str],
    sizes: Sequence[int],
    read: Read,
    *,
    passing: Collection[str] = (),
    at_once: int = 0,
) -> RowVectors:
    """The vectors of all rows: each distinct row without a reason is looked up in the cache, or read once.

    Args:
        space: Everything that decides the vectors, except row and layer.
        target: Where they are gathered; it knows the rows that cannot be read.
        ids: `row_id` of each row.
        sizes: How long each row is, in any unit.
        read: Reads the rows at these positions, in these layers.
        passing: Reasons that may not hold the next time; rows that have one of them are not cached.
        at_once: Number of rows that are read at once, where there are so many, however long it takes.

    Raises:
        SafefilterError: What `read` raises, or the disk is full. All pieces that were read before are cached.
    """
    first: dict[str, int] = {}
    originals: dict[int, int] = {}
    for row, (row_id, reason) in enumerate(zip(ids, target.reasons, strict=True)):
        if not reason and first.setdefault(row_id, row) != row:
            originals[row] = first[row_id]
    rows, keys = np.fromiter(first.values(), int, len(first)), packed(list(first))
    stores = {layer: open_layer(space, layer, width, target.dtype) for layer, width in target.widths.items()}
    known = {layer: store.fetch(keys, target, rows) for layer, store in stores.items()}
    incomplete = {layer: store for layer, store in stores.items() if not known[layer].all()}
    missing = np.flatnonzero(~np.all(list(known.values()), axis=0))
    _found.update(rows=len(rows), recalled=len(rows) - len(missing))
    for piece in _pace(space).pieces(np.asarray(sizes)[rows[missing]], at_once):
        at = missing[piece]
        began = time.monotonic()
        fresh = read(rows[at].tolist(), list(incomplete))
        spans = Ragged(fresh.spans, fresh.offsets)
        for layer, store in incomplete.items():
            new = np.flatnonzero(~known[layer][at])
            vectors = fresh.of(layer)
            if len(new) < len(at):
                vectors, own = vectors.take(new), spans.take(new)
            else:
                own = spans
            rest = StoredRows(keys[at][new], own, vectors, fresh.truncated[new], fresh.reasons[new])
            target.put(rows[at][new], layer, vectors, own, rest.truncated, rest.reasons)
            lasting = np.flatnonzero([reason not in passing for reason in rest.reasons])
            store.add(rest if len(lasting) == len(new) else rest.take(lasting), began)
            store.write_if_due()
    for store in incomplete.values():
        store.write_if_due(call_ends=True)
    return target.joined(originals)


@contextmanager
def tally() -> Iterator[Counter[str]]:
    """Inside the block, the distinct rows that this process looks up are counted: ``rows``, of which ``recalled``."""
    before, inside = _found.copy(), Counter[str]()
    try:
        yield inside
    finally:
        inside.update(_found - before)


_found: Counter[str] = Counter()


@lru_cache(maxsize=8)
def _pace(space: Space) -> Pace:
    return Pace(SECONDS)
