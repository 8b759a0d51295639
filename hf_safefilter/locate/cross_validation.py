"""Choice of layer and method by cross-validation on the references alone; no labels of the rows are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_safefilter.checks import require_whole
from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import answered_text
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.references.coordinates import Coordinates
from hf_safefilter.scores import METHODS
from hf_safefilter.scores import method as method_class
from hf_safefilter.scores.base import ReferenceScore

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex

LEAST_AUROC = 0.6
"""The lower 95 % bound of the chosen layer's AUROC must exceed this for a signal."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layer read by one method.

    Attributes:
        layer: Layer that is read, `hidden_states[layer]`.
        block: Block whose output the layer is; None for the embedding and "norm".
        method: Name of the method.
        auroc: AUROC of the held-out references, pooled over the folds.
        low: Lower 95 % bound of the AUROC (Hanley and McNeil 1982).
        margin: Difference between the mean scores of the two sides, divided by the pooled standard deviation.
    """

    layer: Layer
    block: int | None
    method: str
    auroc: float
    low: float
    margin: float


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The chosen layer and method, and the numbers behind the choice.

    Attributes:
        layer: Chosen layer.
        method: Method that separated the references best at this layer.
        signal: Whether the best candidate separates better than chance; if not, do not rely on the choice.
        length_auroc: AUROC of the length of the response alone (0.5: length says nothing).
        candidates: All candidates, layer by layer.
    """

    layer: Layer
    method: str
    signal: bool
    length_auroc: float
    candidates: tuple[Candidate, ...]

    @property
    def how(self) -> str:
        """How the layer was chosen, in words."""
        return "cross-validation on the references alone (no label of these rows was used)"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the card shows them."""
        body = asdict(self) | {"how": self.how}
        return body | {"candidates": list(body["candidates"])}

    def shown(self) -> list[dict[str, Any]]:
        """One row a layer, for printing: the AUROC of each method; the chosen layer is marked."""
        rows: dict[Layer, dict[str, Any]] = {}
        for candidate in self.candidates:
            block = "" if candidate.block is None else str(candidate.block)
            row = rows.setdefault(candidate.layer, {"layer": str(candidate.layer), "block": block})
            row[candidate.method] = round(candidate.auroc, 3)
        for layer, row in rows.items():
            row["chosen"] = f"for {self.method}" if layer == self.layer else ""
        return [*rows.values(), {"layer": "length alone", "block": ""} | dict.fromkeys(self._methods(), "") | {
            self._methods()[0]: round(self.length_auroc, 3), "chosen": ""}]  # fmt: skip

    def _methods(self) -> list[str]:
        return list(dict.fromkeys(candidate.method for candidate in self.candidates))


def choose_layer(
    references: ReferenceIndex,
    methods: Sequence[str] = ("larf", "nearest", "direction"),
    *,
    folds: int = 5,
    seed: int = 0,
) -> LayerChoice:
    """Choose the layer and method that separate held-out unsafe references from safe ones best.

    Each fold is scored by references of the other folds only. Pairs (unsafe row j, safe row j) stay in one fold, so
    that a prompt is never on both sides of the split. Ties in AUROC go to the larger margin.

    Args:
        references: References read at all layers to choose from.
        methods: Methods to try, all of which must score by references.
        folds: Number of folds, 2 or more.
        seed: Seed of the assignment to folds.

    Raises:
        OptionError: A method that does not score by references, or an invalid number of folds.
        DataError: Too few references for this number of folds.
    """
    if not methods or not all(map(compares_with_references, methods)):
        known = [name for name in METHODS if compares_with_references(name)]
        raise OptionError(
            f"`methods={list(methods)}` cannot all be tried on references",
            found=", ".join(known),
            fix="use some of these",
        )
    scorers = {name: _standardised(cast(type[ReferenceScore], method_class(name)).against) for name in methods}
    require_whole("folds", folds, least=2)
    n_unsafe, n_safe = references.counts["unsafe"], references.counts["safe"]
    if min(n_unsafe, n_safe) < 2 * folds:
        raise DataError(
            f"{n_unsafe} unsafe and {n_safe} safe references are too few for {folds} folds",
            fix=f"give at least {2 * folds} on each side, or name the layer, for example `layer=12`",
        )
    unsafe_folds, safe_folds = _folds(n_unsafe, n_safe, folds, seed)
    candidates = []
    for layer in references.layers:
        unsafe, safe = references.rows_at(layer)
        for method in methods:
            high, low = _held_out(scorers[method], unsafe, safe, unsafe_folds, safe_folds)
            candidates.append(_candidate(layer, method, high, low))
    best = max(candidates, key=lambda candidate: (round(candidate.auroc, 6), candidate.margin))
    length = _auroc(*(_response_lengths(references, side) for side in ("unsafe", "safe")))
    return LayerChoice(best.layer, best.method, best.low > LEAST_AUROC, length, tuple(candidates))


def _response_lengths(references: ReferenceIndex, side: str) -> np.ndarray:
    return np.array([len(answered_text(row.conversation)) for row in references.rows(side)], dtype=float)


Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Scores of vectors, from the vectors and those of the unsafe and the safe references."""


def compares_with_references(name: str) -> bool:
    """Whether a method scores rows by comparing them with references, so that it can be tried on references alone."""
    return name in METHODS and issubclass(method_class(name), ReferenceScore)


def _folds(n_unsafe: int, n_safe: int, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    unsafe = draw.permutation(np.arange(n_unsafe) % folds)
    return unsafe, unsafe if n_safe == n_unsafe else draw.permutation(np.arange(n_safe) % folds)


def _standardised(scorer: Scorer) -> Scorer:
    """The same in coordinates of mean 0 and deviation 1, as scores compare by default."""

    def score(rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        both = Coordinates.of(unsafe, safe, True)
        return scorer(both(rows), both.unsafe, both.safe)

    return score


def _held_out(
    scorer: Scorer, unsafe: Ragged, safe: Ragged, unsafe_folds: np.ndarray, safe_folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Score every reference by those of the other folds, centred fold by fold so that the folds can be pooled."""
    high, low = np.empty(len(unsafe)), np.empty(len(safe))
    for fold in range(int(unsafe_folds.max()) + 1):
        out_unsafe, out_safe = np.flatnonzero(unsafe_folds == fold), np.flatnonzero(safe_folds == fold)
        train = [
            unsafe.take(np.flatnonzero(unsafe_folds != fold)).values,
            safe.take(np.flatnonzero(safe_folds != fold)).values,
        ]
        held = Ragged.joined([unsafe.take(out_unsafe), safe.take(out_safe)])
        scores = Ragged(scorer(held.values, *train).astype(np.float64), held.offsets).largest()[0]
        middle = scorer(np.concatenate(train), *train).astype(np.float64).mean()
        high[out_unsafe], low[out_safe] = scores[: len(out_unsafe)] - middle, scores[len(out_unsafe) :] - middle
    return high, low


def _candidate(layer: Layer, method: str, high: np.ndarray, low: np.ndarray) -> Candidate:
    auroc = _auroc(high, low)
    spread = np.sqrt((high.var() + low.var()) / 2)
    margin = float((high.mean() - low.mean()) / spread) if spread > 0 else 0.0
    block = layer - 1 if isinstance(layer, int) and layer > 0 else None
    return Candidate(layer, block, method, auroc, auroc - 1.96 * auroc_error(auroc, len(high), len(low)), margin)


def _auroc(high: np.ndarray, low: np.ndarray) -> float:
    """Share of the pairs in which the one of `high` is above the one of `low`, ties counted half."""
    low = np.sort(low)
    below, up_to = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + up_to).sum() / (2 * len(high) * len(low)))


def auroc_error(auroc: float, n_high: int, n_low: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil 1982, equation 2)."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (n_high - 1) * (q1 - auroc**2) + (n_low - 1) * (q2 - auroc**2)
    return float(np.sqrt(max(0.0, spread) / (n_high * n_low)))
