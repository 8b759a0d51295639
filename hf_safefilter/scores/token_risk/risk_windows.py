"""Risks of tokens -> risks of windows: a harmful part of a benign answer is found only where it stands."""

from __future__ import annotations

import numpy as np

from hf_safefilter.cache import SCORE, RowVectors
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.spans import SPAN
from hf_safefilter.model.tokens import Span, Tokens
from hf_safefilter.model.windows import row_reads


def windows_of(risks: RowVectors, window: int | None) -> tuple[Ragged, Ragged]:
    """The windows of each row, as `EmbedLayers` would read it, and the mean risk of their tokens.

    Args:
        risks: Those of tokens, from `RiskAdapters.risks`.
        window: Number of tokens in a window; None for whole answers.

    Returns:
        `SPAN` `(windows,)` and float32 `(windows,)`, with the same offsets.
    """
    tokens, values = Ragged(risks.spans, risks.offsets), risks.of(SCORE)
    spans, means = [], []
    for index in range(len(tokens)):
        spans.append(_windows(tokens.row(index), window))
        means.append(_means(tokens.row(index)["start"], values.row(index)[:, 0], spans[-1]))
    return Ragged.of(spans, np.empty(0, SPAN)), Ragged.of(means, np.empty(0, np.float32))


def _windows(tokens: np.ndarray, window: int | None) -> np.ndarray:
    """The windows over a row's tokens, each of which is a span of its own."""
    if not len(tokens):
        return np.empty(0, SPAN)
    turns, first = np.unique(tokens["turn"], return_index=True)
    last = np.append(first[1:], len(tokens)) - 1
    whole = [
        Span(int(turn), int(tokens["start"][a]), int(tokens["stop"][b]), int(tokens["stop"][b]))
        for turn, a, b in zip(turns, first, last, strict=True)
    ]
    row = Tokens(np.zeros(whole[-1].stop, np.int32), whole)
    spans = row_reads([row], ("mean",), window=window).spans
    return spans[spans["stop"] > 1]  # the first token of a row is never learned


def _means(places: np.ndarray, risks: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Mean of the risks of the tokens at `places`, ascending, in each window; the first of a row does not count."""
    learned = places > 0
    places, total = places[learned], np.concatenate([[0.0], np.cumsum(risks[learned], dtype=np.float64)])
    start, stop = np.searchsorted(places, windows["start"]), np.searchsorted(places, windows["stop"])
    return ((total[stop] - total[start]) / (stop - start)).astype(np.float32)


def aligned(windows: Ragged, means: Ragged, rows: np.ndarray, spans: Ragged) -> tuple[Ragged, int]:
    """The scores of `spans`, which another step has read, and the number of rows whose spans are not the windows.

    Where the spans of a row are not its windows, each gets the row's own score: none of them is known to be safer. A
    span in the rejected side of a pair, or in a row that has no score, has none.

    Args:
        windows: `SPAN` of each row.
        means: Their scores.
        rows: Score of each row, float32 `(n,)`.
        spans: `SPAN` of each row.
    """
    found, others = [], 0
    for index in range(len(spans)):
        wanted = spans.row(index)
        chosen = ~wanted["rejected"]
        scores = np.full(len(wanted), np.nan, np.float32)
        if np.array_equal(wanted[chosen], windows.row(index)):
            scores[chosen] = means.row(index)
        else:
            scores[chosen] = rows[index]
            others += bool(chosen.any() and np.isfinite(rows[index]))
        found.append(scores)
    return Ragged.of(found, np.empty(0, np.float32)), others
