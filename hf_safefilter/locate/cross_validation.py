"""Which layer and method to use: cross-validated separation of the references alone, no label of the target needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import Conversation, response_of
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores import METHODS
from hf_safefilter.scores import method as method_class
from hf_safefilter.scores.base import ReferenceScore

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex

LEAST_AUROC = 0.6
"""A layer whose lower 95 % bound does not reach this separates too little to be chosen."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layer read by one method.

    Attributes:
        layer: what is read, `hidden_states[layer]`.
        block: the block whose output that is; None for the embedding and "norm".
        method: name of the score.
        auroc: of held-out references, pooled over the folds.
        low: its lower 95 % bound (Hanley and McNeil 1982).
        margin: difference of the side means over the pooled standard deviation.
    """

    layer: Layer
    block: int | None
    method: str
    auroc: float
    low: float
    margin: float


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The choice, and every number it was made from.

    Attributes:
        layer: chosen layer.
        method: the method that separated best there.
        signal: False where no candidate separates better than chance: then nothing should be built on the choice.
        length_auroc: how well the length of the response alone tells the sides apart (0.5 = not at all).
        candidates: all of them, layer by layer.
    """

    layer: Layer
    method: str
    signal: bool
    length_auroc: float
    candidates: tuple[Candidate, ...]

    @property
    def how(self) -> str:
        """How the layer was found, in a sentence."""
        return "cross-validation on the references alone (no label of these rows was used)"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the card has them."""
        body = asdict(self) | {"how": self.how}
        return body | {"candidates": [dict(one) for one in body["candidates"]]}

    def shown(self) -> list[dict[str, Any]]:
        """One row a layer, for printing: the AUROC of each method; the chosen layer is marked."""
        rows: dict[Layer, dict[str, Any]] = {}
        for one in self.candidates:
            row = rows.setdefault(
                one.layer, {"layer": str(one.layer), "block": "" if one.block is None else str(one.block)}
            )
            row[one.method] = round(one.auroc, 3)
        for layer, row in rows.items():
            row["chosen"] = f"for {self.method}" if layer == self.layer else ""
        return [*rows.values(), {"layer": "length alone", "block": ""} | dict.fromkeys(self._methods(), "") | {
            self._methods()[0]: round(self.length_auroc, 3), "chosen": ""}]  # fmt: skip

    def _methods(self) -> list[str]:
        return list(dict.fromkeys(one.method for one in self.candidates))


def choose_layer(
    references: ReferenceIndex,
    methods: Sequence[str] = ("larf", "nearest", "direction"),
    *,
    folds: int = 5,
    seed: int = 0,
) -> LayerChoice:
    """Choose layer and method by how well held-out references are told apart.

    Each fold is scored by references of the other folds only; pairs (unsafe row j, safe row j) stay in one fold, so
    that a prompt is never on both sides of the split. Ties in AUROC go to the larger margin.

    Args:
        references: read at all layers to choose from.
        methods: some of `COMPARABLE`.
        folds: 2 or more.
        seed: of the assignment to folds.

    Raises:
        OptionError: unknown methods or a fold count that makes no sense.
        DataError: too few references for so many folds.
    """
    if not methods or not all(map(compares_with_references, methods)):
        known = [name for name in METHODS if compares_with_references(name)]
        raise OptionError(
            f"methods {list(methods)} cannot be tried on references", found=", ".join(known), fix="use some of these"
        )
    scorers = {name: cast(type[ReferenceScore], method_class(name)).against for name in methods}
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise OptionError(f"folds={folds!r} is not 2 or more", fix="use folds=5")
    n_unsafe, n_safe = (len(side) for side in references.vectors(references.layers[0]))
    if min(n_unsafe, n_safe) < 2 * folds:
        raise DataError(
            f"{n_unsafe} unsafe and {n_safe} safe references are too few for {folds} folds",
            fix=f"give at least {2 * folds} on each side, or name the layer yourself",
        )
    unsafe_folds, safe_folds = _folds(n_unsafe, n_safe, folds, seed)
    candidates = []
    for layer in references.layers:
        unsafe, safe = references.vectors(layer)
        for method in methods:
            high, low = _held_out(scorers[method], unsafe, safe, unsafe_folds, safe_folds)
            candidates.append(_candidate(layer, method, high, low))
    best = max(candidates, key=lambda one: (round(one.auroc, 6), one.margin))
    length = _auroc(*(_response_lengths(references, side) for side in ("unsafe", "safe")))
    return LayerChoice(best.layer, best.method, best.low > LEAST_AUROC, length, tuple(candidates))


def _response_lengths(references: ReferenceIndex, side: str) -> np.ndarray:
    return np.array([len(response_of(Conversation(row.messages))) for row in references.rows(side)], dtype=float)


Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def compares_with_references(name: str) -> bool:
    """Whether a method can be tried on references alone."""
    return name in METHODS and issubclass(method_class(name), ReferenceScore)


def _folds(n_unsafe: int, n_safe: int, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    unsafe = draw.permutation(np.arange(n_unsafe) % folds)
    return unsafe, unsafe if n_safe == n_unsafe else draw.permutation(np.arange(n_safe) % folds)


def _held_out(
    scorer: Scorer, unsafe: np.ndarray, safe: np.ndarray, unsafe_folds: np.ndarray, safe_folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of every reference by references of the other folds; each fold is centred, so that folds can be pooled."""
    high, low = np.empty(len(unsafe)), np.empty(len(safe))
    for fold in range(int(unsafe_folds.max()) + 1):
        out_unsafe, out_safe = unsafe_folds == fold, safe_folds == fold
        train = unsafe[~out_unsafe], safe[~out_safe]
        both = scorer(np.concatenate([unsafe[out_unsafe], safe[out_safe]]), *train).astype(np.float64)
        middle = scorer(np.concatenate(train), *train).astype(np.float64).mean()
        high[out_unsafe], low[out_safe] = both[: out_unsafe.sum()] - middle, both[out_unsafe.sum() :] - middle
    return high, low


def _candidate(layer: Layer, method: str, high: np.ndarray, low: np.ndarray) -> Candidate:
    auroc = _auroc(high, low)
    spread = np.sqrt((high.var() + low.var()) / 2)
    margin = float((high.mean() - low.mean()) / spread) if spread > 0 else 0.0
    block = layer - 1 if isinstance(layer, int) and layer > 0 else None
    return Candidate(layer, block, method, auroc, auroc - 1.96 * _error(auroc, len(high), len(low)), margin)


def _auroc(high: np.ndarray, low: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.repeat([1, 0], [len(high), len(low)]), np.concatenate([high, low])))


def _error(auroc: float, n_high: int, n_low: int) -> float:
    """Standard error of an AUROC (Hanley and McNeil 1982, equation 2)."""
    one, two = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (n_high - 1) * (one - auroc**2) + (n_low - 1) * (two - auroc**2)
    return float(np.sqrt(max(0.0, spread) / (n_high * n_low)))
