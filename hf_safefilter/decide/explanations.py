"""Why a row has its score, in words: which of its spans, and what that is near to among the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_safefilter.columns import (
    ROW_ID,
    UNSCORABLE,
    answer_key,
    decided_column,
    embedding_column,
    is_shift,
    span_column,
)
from hf_safefilter.data.batch import Batch
from hf_safefilter.references import SIDES, references
from hf_safefilter.references.coordinates import coordinates, neighbours_index
from hf_safefilter.references.flat import search
from hf_safefilter.scores.base import ReferenceScore
from hf_safefilter.scores.probe import Probe, ProbeScore
from hf_safefilter.scores.ranks import RankScore

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.columns import Layer
    from hf_safefilter.scores.base import Score
    from hf_safefilter.step import Step


_SPANS = 4  # of one reference may stand among the nearest before another is missed


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A reference that a span is near to: its number on its side, from 1, and their cosine in standard coordinates."""

    number: int
    cosine: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a row has its score.

    Attributes:
        row_id: Id of the row.
        score: Its score; NaN if it has none.
        reason: Why it has none; "" if it has one.
        method: The method that decided.
        danger: What that method looks for.
        turn: Index, among the messages, of the turn with the largest score; None if it is not known.
        start: First token of the span of that turn.
        stop: The token after its last one.
        unsafe: The unsafe references nearest to it, the nearest first.
        safe: The safe ones.
    """

    row_id: str
    score: float
    reason: str
    method: str
    danger: str
    turn: int | None
    start: int | None
    stop: int | None
    unsafe: tuple[Neighbour, ...] = ()
    safe: tuple[Neighbour, ...] = ()

    @property
    def words(self) -> str:
        """One sentence."""
        if self.reason:
            return f"could not be read: {self.reason}"
        where = "" if self.turn is None else f"turn {self.turn}, tokens {self.start} to {self.stop}: "
        near = f"{self.danger} ({self.method})"
        if self.unsafe and self.safe:
            nearer = "nearer" if self.unsafe[0].cosine > self.safe[0].cosine else "less near"
            names = " and ".join(str(neighbour.number) for neighbour in self.unsafe)
            near += (
                f"; nearest to unsafe references {names} ({self.unsafe[0].cosine:.2f}), {nearer} than to safe "
                f"reference {self.safe[0].number} ({self.safe[0].cosine:.2f})"
            )
        return where + near


def explain(rows: Dataset, column: str, steps: Sequence[Step], k: int = 2) -> list[Explanation]:
    """Explain the scores of a few rows.

    Args:
        rows: Scored rows, with their vectors if references are to be named.
        column: The score column.
        steps: The steps that filled the columns of the rows.
        k: Number of references that are named on each side.
    """
    batch = Batch(rows.with_format("arrow")[:])
    scores = batch.numbers(column)
    ids = batch.cells(ROW_ID) if ROW_ID in batch.names else [""] * batch.n
    unread = batch.cells(UNSCORABLE) if UNSCORABLE in batch.names else [""] * batch.n
    deciding = deciding_scores(batch, column, steps)
    places = {step.METHOD: _Places.of(batch, step, k) for step in deciding}
    return [
        places[step.METHOD].explanation(row, ids[row], float(scores[row]), unread[row] or "", step)
        for row, step in enumerate(deciding)
    ]


def deciding_scores(batch: Batch, column: str, steps: Sequence[Step]) -> list[Score]:
    """The score that decided each row: of a combination, the one that ranks it highest, or the first."""
    by_column: dict[str, Score] = {name: step for step in steps for name in step.produces() if hasattr(step, "METHOD")}  # type: ignore[misc]
    step = by_column[column]
    if not isinstance(step, RankScore):
        return [step] * batch.n
    parts = {part.METHOD: part for part in (by_column[name] for name in step.needs())}
    first = next(iter(parts.values()))
    named = decided_column(step.METHOD)
    return [parts.get(method, first) for method in (batch.cells(named) if named in batch.names else [""] * batch.n)]


@dataclass(frozen=True, slots=True)
class _Places:
    """For each row of a batch the span that has the largest score of a method, and its nearest references."""

    spans: list[tuple[int, int, int] | None]
    near: dict[int, tuple[tuple[Neighbour, ...], tuple[Neighbour, ...]]]

    @classmethod
    def of(cls, batch: Batch, step: Score, k: int) -> _Places:
        name, spans = span_column(step.METHOD), batch.spans()
        if name not in batch.names or spans is None:
            return cls([None] * batch.n, {})
        at = batch.numbers(name)
        known = [row for row in range(batch.n) if 0 <= at[row] < spans.counts[row]]
        entries = {row: spans.row(row)[int(at[row])] for row in known}
        places = [
            (int(entries[row]["turn"]), int(entries[row]["start"]), int(entries[row]["stop"]))
            if row in entries
            else None
            for row in range(batch.n)
        ]
        return cls(places, _near(batch, step, {row: int(at[row]) for row in known}, k))

    def explanation(self, row: int, row_id: str, score: float, reason: str, step: Score) -> Explanation:
        turn, start, stop = self.spans[row] or (None, None, None)
        unsafe, safe = self.near.get(row, ((), ()))
        return Explanation(row_id, score, reason, step.METHOD, step.DANGER, turn, start, stop, unsafe, safe)


def _near(
    batch: Batch, step: Score, at: dict[int, int], k: int
) -> dict[int, tuple[tuple[Neighbour, ...], tuple[Neighbour, ...]]]:
    """The references nearest to a span of each row, at the layer that the score reads, or the middle one of several."""
    read = compared_at(step)
    if read is None or not at or embedding_column(read[1]) not in batch.names:
        return {}
    digest, layer = read
    vectors = batch.vectors(embedding_column(layer))
    rows = [row for row in at if at[row] < vectors.counts[row]]
    if not rows:
        return {}
    chosen = np.stack([vectors.row(row)[at[row]] for row in rows]).astype(np.float32)
    queries = np.ascontiguousarray(coordinates(digest, layer, True)(chosen), dtype=np.float32)
    index = references(digest)
    sides = []
    for side in SIDES:
        cosines, places = search(
            neighbours_index(digest, layer, side, True), queries, min(k * _SPANS, index.counts[side])
        )
        numbers = np.array([*(index.owners(side) + 1), 0])[places]
        sides.append([_distinct(*pair, k) for pair in zip(numbers, cosines, strict=True)])
    return dict(zip(rows, zip(*sides, strict=True), strict=True))


def _distinct(numbers: np.ndarray, cosines: np.ndarray, k: int) -> tuple[Neighbour, ...]:
    """The first `k` references, each by its nearest span; a number of 0 stands for none."""
    nearest: dict[int, float] = {}
    for number, cosine in zip(numbers.tolist(), cosines.tolist(), strict=True):
        if number:
            nearest.setdefault(number, cosine)
    return tuple(Neighbour(number, cosine) for number, cosine in nearest.items())[:k]


def compared_at(step: Score) -> tuple[str, Layer] | None:
    """Digest of the references that a score compares with, and the layer of answers to show; None if there are none."""
    if isinstance(step, ReferenceScore):
        return step.references_digest, answer_key(step.layer)
    if isinstance(step, ProbeScore):
        layers = [layer for layer in Probe.of(step.probe).layers if not is_shift(layer)]
        return (step.references, layers[len(layers) // 2]) if layers else None
    return None
