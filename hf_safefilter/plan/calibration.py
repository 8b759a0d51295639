"""How fast this machine really reads rows like these: a small sample, embedded and timed."""

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
"""How long a measurement goes on, about; loading the model comes on top."""

_FIRST = 16  # rows
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What a sample took.

    Attributes:
        rows, tokens: read, all samples together.
        flops: operations counted for them.
        seconds: they took, text in and vectors out, model loaded.
    """

    rows: int
    tokens: int
    flops: float
    seconds: float

    @property
    def speed(self) -> float:
        """Counted operations a second."""
        return self.flops / self.seconds


def calibrate(step: EmbedLayers, rows: Dataset | DatasetDict, work: Work) -> Measured:
    """Embed samples of `rows`, each twice as large as the one before, for some seconds or until all are read.

    All of them count, as a neighbour's burst may fall on any one; what comes before them, to load the model and settle
    on threads and backends, does not. The row cache is not asked. A sample is read like any batch, in order of length.

    Raises:
        DataError: no row can be read.
        SafefilterError: what `EmbedLayers` raises.
    """
    sample = spread_sample(rows, _MOST)
    count = min(_FIRST, len(sample))
    step.vectors(sample.select(range(count)))
    found, reasons, spent = [], [], 0.0
    while True:
        chosen = _evenly(sample, count)
        begin = time.perf_counter()
        _, read, why = step.vectors(chosen)
        took = time.perf_counter() - begin
        found, reasons, spent = [*found, *read], [*reasons, *why], spent + took
        if count == len(sample) or spent + 2 * took > SECONDS:
            break
        count = min(2 * count, len(sample))
    if all(reasons):
        raise DataError("no row of the sample can be read", found=reasons[0])
    tokens = _tokens(step, found)
    return Measured(len(found), sum(tokens), sum(work.flops(n, n**2) for n in tokens if n), spent)


def _tokens(step: EmbedLayers, found: list[Conversation]) -> list[int]:
    from hf_safefilter.model.load import max_tokens, tokenizer
    from hf_safefilter.model.tokens import tokenise

    key = step._key()
    limit = step.max_length or max_tokens(key)
    options = {"position": step.position, "max_length": limit, "chat_template": step.chat_template}
    return [len(one.ids) for one in tokenise(tokenizer(key), found, **options)]


def _evenly(sample: Dataset, count: int) -> Dataset:
    """`count` rows spread over the sample, which is in no order of length."""
    return sample.select(np.linspace(0, len(sample) - 1, count).round().astype(int))
