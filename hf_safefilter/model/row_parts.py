"""Rows of a call, part by part: the next one is tokenised while one is read, and a bar says how far the reading is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from hf_safefilter.model.work_ahead import ahead

if TYPE_CHECKING:
    import numpy as np

    from hf_safefilter.columns import Layer
    from hf_safefilter.data.conversations import Conversation
    from hf_safefilter.model.readers import Reader
    from hf_safefilter.model.windows import RowReads

TOKENISED_AT_ONCE = 256
"""Rows of a part."""

_BAR_AFTER = 3.0
"""Seconds after which a call is worth a bar of its own."""


def read_in_parts(
    reader: Reader,
    rows: Sequence[Conversation],
    plan: Callable[[Sequence[Conversation]], list[RowReads]],
    layers: tuple[Layer, ...],
    *,
    bar: bool = True,
) -> Iterator[tuple[list[RowReads], dict[Layer, np.ndarray]]]:
    """The reads of each part, and for each layer their vectors, float32 `(reads, hidden_size)`.

    Args:
        reader: Reads the model.
        rows: All rows of the call.
        plan: Says where each row is read.
        layers: Layers that are read.
        bar: Whether a terminal gets a bar that counts rows, if the call takes more than a few seconds.
    """
    from datasets.utils import tqdm

    size = len(rows) if reader.whole_calls else TOKENISED_AT_ONCE
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    shown = tqdm(
        total=len(rows), desc="Read", unit=" rows", leave=False, delay=_BAR_AFTER, disable=None if bar else True
    )
    with shown:
        for number, part in enumerate(ahead(parts, plan)):
            start, count = number * size, len(part)

            def advance(share: float, start: int = start, count: int = count) -> None:
                shown.update(start + int(share * count) - shown.n)

            sequences = [one for row in part for one in row.sequences]
            yield part, reader.read(sequences, layers, advance)
