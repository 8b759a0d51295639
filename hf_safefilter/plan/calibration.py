"""How fast this machine reads rows like these: a small sample is embedded and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.errors import DataError
from hf_safefilter.plan.lengths import spread_sample

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.data.conversations import Conversation
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.plan.work import Work

SECONDS = 8.0
"""About how long a calibration takes; loading the model comes on top."""

_FIRST, _MOST = 16, 1024  # rows of a sample


@dataclass(frozen=True, slots=True)
class Calibration:
    """What all samples together took.

    Attributes:
        rows: Number of rows that were read.
        tokens: Number of tokens in these rows.
        flops: Number of operations counted for them.
        seconds: Time from text to vectors, with the model loaded.
    """

    rows: int
    tokens: int
    flops: float
    seconds: float

    @property
    def speed(self) -> float:
        """Operations per second."""
        return self.flops / self.seconds


def calibrate(step: EmbedLayers, rows: Dataset | DatasetDict, work: Work) -> Calibration:
    """Embed samples of `rows`, each twice as large as the one before, for some seconds or until all are read.

    All samples count, as other programs on this machine may slow down any of them. A first batch, which loads the model
    and lets torch choose threads and backends, does not count. The row cache is not used. A sample is read like any
    batch, in order of length.

    Raises:
        DataError: No row can be read.
        SafefilterError: See `EmbedLayers`.
    """
    sample = spread_sample(rows, _MOST)
    count = min(_FIRST, len(sample))
    step.vectors(sample.select(range(count)), fresh=True)
    conversations: list[Conversation] = []
    reasons: list[str] = []
    seconds = 0.0
    while True:
        chosen = _evenly(sample, count)
        begin = time.perf_counter()
        read, chosen_conversations = step.vectors(chosen, fresh=True)
        elapsed = time.perf_counter() - begin
        conversations += chosen_conversations
        reasons += list(read.reasons)
        seconds += elapsed
        if count == len(sample) or seconds + 2 * elapsed > SECONDS:
            break
        count = min(2 * count, len(sample))
    if all(reasons):
        raise DataError("no row of the sample can be read", found=reasons[0])
    lengths = _lengths(step, conversations)
    flops = sum(work.flops(length, length**2) for length in lengths if length)
    return Calibration(len(conversations), sum(lengths), flops, seconds)


def _lengths(step: EmbedLayers, conversations: list[Conversation]) -> list[int]:
    """Number of tokens of each sequence that is read."""
    return [len(one.ids) for row in step.reads(conversations) for one in row.sequences]


def _evenly(sample: Dataset, count: int) -> Dataset:
    """`count` rows spread over the sample, whose order does not depend on length."""
    return sample.select(np.linspace(0, len(sample) - 1, count).round().astype(int))
