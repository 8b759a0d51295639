"""The result of reading some rows: the spans of each, their vectors, and why a row could not be read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hf_safefilter.columns import FLOAT16_MAX, Layer
from hf_safefilter.data.ragged import Ragged, offsets_of
from hf_safefilter.data.spans import SPAN

logger = logging.getLogger(__name__)

NON_FINITE = "non_finite"
"""Reason of a row whose states overflowed to infinity or NaN."""


@dataclass(slots=True)
class RowVectors:
    """The vectors of n rows with m spans, and what else was learned when they were read.

    Attributes:
        offsets: int64 `(n + 1,)`: the spans of row i are number `offsets[i]` to `offsets[i + 1]`. A row that could not
            be read has none.
        spans: `SPAN` `(m,)`.
        vectors: Layer -> `(m, hidden_size)`.
        truncated: bool `(n,)`: whether the row was cut to fit.
        reasons: Strings `(n,)`: why the row could not be read; "" where it could.
    """

    offsets: np.ndarray
    spans: np.ndarray
    vectors: dict[Layer, np.ndarray]
    truncated: np.ndarray
    reasons: np.ndarray

    @classmethod
    def one_each(cls, layer: Layer, values: np.ndarray, reasons: Sequence[str], truncated: np.ndarray) -> Self:
        """One value for each row without a reason, from `values` `(n,)`, which stands for all of the row."""
        readable = np.array([not reason for reason in reasons], dtype=bool)
        spans = np.zeros(int(readable.sum()), SPAN)
        spans["turn"] = -1
        return cls(
            offsets_of(readable.astype(np.int64)), spans, {layer: values[readable, None]}, truncated, _texts(reasons)
        )

    def of(self, layer: Layer) -> Ragged:
        """The vectors of one layer, row by row."""
        return Ragged(self.vectors[layer], self.offsets)

    def take(self, rows: np.ndarray) -> RowVectors:
        """Those of the given rows, in the given order."""
        spans = Ragged(self.spans, self.offsets).take(rows)
        vectors = {layer: self.of(layer).take(rows).values for layer in self.vectors}
        return RowVectors(spans.offsets, spans.values, vectors, self.truncated[rows], self.reasons[rows])

    def halved(self) -> RowVectors:
        """The same in float16, clamped to its range; a vector that is not finite becomes NaN."""
        vectors = {layer: _half(layer, values) for layer, values in self.vectors.items()}
        return RowVectors(self.offsets, self.spans, vectors, self.truncated, self.reasons)

    def finite(self) -> RowVectors:
        """The same without the rows that are not finite in one layer, which get the reason `NON_FINITE`."""
        good = np.ones(len(self.spans), bool)
        for values in self.vectors.values():
            good &= np.isfinite(values).all(axis=1)
        if good.all():
            return self
        owners = Ragged(good, self.offsets).owners
        bad = np.zeros(len(self.reasons), bool)
        bad[owners[~good]] = True
        reasons = np.where(bad & (self.reasons == ""), NON_FINITE, self.reasons).astype(object)
        return self.without(bad, reasons)

    def without(self, rows: np.ndarray, reasons: np.ndarray) -> RowVectors:
        """The same without the spans of some rows, bool `(n,)`, and with other reasons."""
        stays = ~rows[Ragged(self.spans, self.offsets).owners]
        vectors = {layer: values[stays] for layer, values in self.vectors.items()}
        counts = np.where(rows, 0, np.diff(self.offsets))
        return RowVectors(offsets_of(counts), self.spans[stays], vectors, self.truncated, reasons)


class Gathering:
    """Rows that are read piece by piece, from several sources, in any order; at the end a `RowVectors` of all.

    Args:
        reasons: Why rows cannot be read, as far as that is known; such rows are not put.
        widths: Layer -> length of its vectors.
        dtype: Of the vectors.
    """

    def __init__(self, reasons: Sequence[str], widths: Mapping[Layer, int], dtype: type = np.float16) -> None:
        self.widths, self.dtype = dict(widths), dtype
        self.reasons = _texts(reasons)
        self._truncated = np.zeros(len(self.reasons), bool)
        self._spans: list[tuple[np.ndarray, Ragged]] = []
        self._vectors: dict[Layer, list[tuple[np.ndarray, Ragged]]] = {layer: [] for layer in widths}

    def put(
        self, rows: np.ndarray, layer: Layer, vectors: Ragged, spans: Ragged, truncated: np.ndarray, reasons: np.ndarray
    ) -> None:
        """Set one layer of `rows`."""
        self._vectors[layer].append((rows, vectors))
        self._spans.append((rows, spans))
        self._truncated[rows] = truncated
        self.reasons[rows] = reasons

    def joined(self, originals: Mapping[int, int]) -> RowVectors:
        """All rows; those among the keys of `originals` are duplicates of their values."""
        copies, sources = list(originals), list(originals.values())
        self._truncated[copies], self.reasons[copies] = self._truncated[sources], self.reasons[sources]
        spans = self._in_order(self._spans, np.empty(0, SPAN), copies, sources)
        vectors: dict[Layer, np.ndarray] = {}
        for layer, pieces in self._vectors.items():
            empty: np.ndarray = np.empty((0, self.widths[layer]), self.dtype)
            vectors[layer] = self._in_order(pieces, empty, copies, sources).values
        return RowVectors(spans.offsets, spans.values, vectors, self._truncated, self.reasons)

    def _in_order(
        self, pieces: list[tuple[np.ndarray, Ragged]], empty: np.ndarray, copies: list[int], sources: list[int]
    ) -> Ragged:
        nothing = Ragged(empty, np.zeros(2, np.int64))  # the last row, which index -1 selects
        found = Ragged.joined([*(piece for _, piece in pieces), nothing])
        place = np.full(len(self.reasons), -1)
        place[np.concatenate([rows for rows, _ in pieces] or [np.empty(0, int)])] = np.arange(len(found) - 1)
        place[copies] = place[sources]
        return found.take(place)


def _half(layer: Layer, vectors: np.ndarray) -> np.ndarray:
    finite = np.isfinite(vectors).all(axis=1)
    beyond = int(np.count_nonzero(np.abs(vectors[finite]) > FLOAT16_MAX))
    if beyond:
        logger.warning("layer %s: %d values beyond the range of float16 were clamped to 65504", layer, beyond)
    half = np.clip(vectors, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
    half[~finite] = np.nan
    return half


def _texts(values: Sequence[str]) -> np.ndarray:
    texts = np.empty(len(values), dtype=object)
    texts[:] = list(values)
    return texts
