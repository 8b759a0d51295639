"""Choice of the reading: method and layers, by cross-validation on the references alone.

What decides is the standardised gap between the same harmful request answered and refused, where the topic stands
still: against ordinary rows a score is rewarded for knowing topics, and an AUROC saturates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_safefilter.checks import require_whole
from hf_safefilter.columns import Layer, is_shift, prompt_key, shift_key
from hf_safefilter.data.conversations import answered_text, prompt_of
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.references.coordinates import Coordinates
from hf_safefilter.scores import method as method_class
from hf_safefilter.scores.base import ReferenceScore
from hf_safefilter.scores.probe.fit import boundary
from hf_safefilter.scores.probe.neighbourhood import Neighbourhood, spread
from hf_safefilter.scores.probe.noise import noise_of, part_and_whole
from hf_safefilter.scores.shift import compliance

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex

ENSEMBLE, PROBE, SHIFT = "ensemble", "probe", "shift"
METHODS = ("larf", "nearest", PROBE, ENSEMBLE)
"""Methods that are tried where none is named."""

LEAST_GAP = 0.5
"""The lower end of the interval of the chosen gap must exceed this many deviations for a signal."""

_WIDER = (ENSEMBLE, PROBE)  # methods that are tried over all layers together, the widest first
_DRAWS = 200  # of the bootstrap


@dataclass(frozen=True, slots=True)
class Reading:
    """A method at one layer, or over several.

    Attributes:
        method: Name of the method.
        layers: The layers that it reads.
        gap: Mean score of held-out harmful requests answered minus that of the same requests refused, in deviations.
        low: Lower end of its 95 % interval, by a bootstrap over requests.
        high: Upper end.
        auroc: AUROC of the held-out unsafe references against all safe ones.
    """

    method: str
    layers: tuple[Layer, ...]
    gap: float
    low: float
    high: float
    auroc: float


@dataclass(frozen=True, slots=True)
class ReadingChoice:
    """The chosen reading, and all that were tried.

    Attributes:
        method: Name of the method.
        layers: The layers that it reads.
        signal: Whether it tells answers from refusals better than chance; if not, do not rely on it.
        margin: Its gap minus that of the best reading of another kind: one layer or several, one score or several.
        length_auroc: AUROC of the length of the answers alone among the references (0.5: length says nothing).
        readings: All readings that were tried, the chosen one first, then by their gaps.
    """

    method: str
    layers: tuple[Layer, ...]
    signal: bool
    margin: float
    length_auroc: float
    readings: tuple[Reading, ...]

    @property
    def layer(self) -> Layer:
        """The layer, or the middle one of several."""
        return self.layers[len(self.layers) // 2]

    def layers_of(self, method: str) -> tuple[Layer, ...]:
        """The layers at which `method` read best: those chosen, or its own; the middle one of those if not tried."""
        if method == self.method:
            return self.layers
        own = sorted((reading for reading in self.readings if reading.method == method), key=_by_gap)
        return (_steady(own) or own[0]).layers if own else (self.layer,)

    @property
    def best(self) -> Reading:
        """The chosen reading."""
        return self.readings[0]

    @property
    def how(self) -> str:
        """How it was chosen, in words."""
        layers = f"layer{'s' * (len(self.layers) > 1)} {', '.join(map(str, self.layers))}"
        interval = f"{self.best.gap:.2f} deviations, {self.best.low:.2f} to {self.best.high:.2f}"
        return (
            "the gap between the same requests answered and refused, on held-out references alone: "
            f"{self.method} at {layers} ({interval}; no label of these rows was used)"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the card shows them."""
        body = asdict(self) | {"how": self.how, "layer": self.layer, "auroc": self.best.auroc}
        return body | {"readings": list(body["readings"])}

    def shown(self) -> list[dict[str, Any]]:
        """The best readings, for printing."""
        return [
            {
                "method": reading.method,
                "layers": ",".join(map(str, reading.layers)),
                "gap": round(reading.gap, 2),
                "from": round(reading.low, 2),
                "to": round(reading.high, 2),
                "AUROC": round(reading.auroc, 3),
                "chosen": "yes" if reading is self.best else "",
            }
            for reading in self.readings[:8]
        ]


def middle_layers(n_blocks: int, count: int = 5) -> list[int]:
    """Layers spread over the middle of a model, from two fifths to four fifths of its depth."""
    places = np.linspace(0.4 * n_blocks, 0.8 * n_blocks, count).round().astype(int)
    return sorted({max(1, int(layer)) for layer in places})


def choose_reading(
    references: ReferenceIndex, methods: Sequence[str] = METHODS, *, folds: int = 5, seed: int = 0
) -> ReadingChoice:
    """Choose the method and the layers that tell held-out answers from refusals best.

    Rows with the same request stay in one fold, and each fold is scored by references of the other folds only. The
    probe is also tried over all layers of the references together, and so is the ensemble, which adds the nearest
    references and the shifts to it. The widest of these wins unless the interval of a narrower reading's gap lies above
    it: several are about as good as the best one, without having to know which that is, and their errors differ.

    Args:
        references: References read at all layers to choose from.
        methods: Methods to try: such as compare with references, "probe" and "ensemble"; the latter, and "shift", at
            the layers at which the references were read at the end of the prompt too.
        folds: Number of folds, 2 or more.
        seed: Seed of the assignment to folds.

    Raises:
        OptionError: A method that does not go by references, or an invalid number of folds.
        DataError: Too few references, refusals among them, or requests for this number of folds.
    """
    require_whole("folds", folds, least=2)
    for name in methods:
        if not goes_by_references(name):
            raise OptionError(f"{name!r} cannot be tried on references", fix=f"use some of {', '.join(METHODS)}")
    held_out = _HeldOut.of(references, folds, seed)
    readings = []
    for name in methods:
        layers = [layer for layer in references.layers if isinstance(layer, int) or is_shift(layer)]
        if method_class(name).AT_PROMPT:
            layers = [layer for layer in layers if not is_shift(layer) and prompt_key(layer) in references.layers]
        by_layer = {layer: held_out.scores(name, layer) for layer in layers}
        readings += [held_out.reading(name, (layer,), scores) for layer, scores in by_layer.items()]
        if name in _WIDER and len(by_layer) > 1:
            together = cast(np.ndarray, np.mean(list(by_layer.values()), axis=0))
            readings.append(held_out.reading(name, tuple(by_layer), together))
    if not readings:
        at_prompt = all(method_class(name).AT_PROMPT for name in methods)
        where = ', position="mean,last_prompt"' if at_prompt else ""
        raise DataError(
            f"the references were read at no layer to choose from{' with the end of the prompt' if at_prompt else ''}",
            fix=f"build them with EmbedLayers(..., layers=[...]{where})",
        )
    readings.sort(key=_by_gap)
    steady = _steady(readings)
    if steady is not None:
        readings.sort(key=lambda reading: reading is not steady)
    best = readings[0]
    others = [reading.gap for reading in readings if _kind(reading) != _kind(best)]
    margin = best.gap - max(others, default=float("nan"))
    return ReadingChoice(
        best.method, best.layers, best.low > LEAST_GAP, margin, held_out.length_auroc(references), tuple(readings)
    )


def goes_by_references(name: str) -> bool:
    """Whether a method can be tried on references alone."""
    return name in _WIDER or issubclass(method_class(name), ReferenceScore)


def _steady(readings: Sequence[Reading]) -> Reading | None:
    """The widest of readings over several layers that none is clearly better than; those are given by their gaps."""
    widest = [reading for name in _WIDER for reading in readings if reading.method == name and len(reading.layers) > 1]
    return next((reading for reading in widest if readings[0].low <= reading.gap), None)


def _by_gap(reading: Reading) -> float:
    return -reading.gap


def _kind(reading: Reading) -> tuple[bool, bool]:
    """Whether a reading is of several layers, and of several scores."""
    return len(reading.layers) > 1, reading.method == ENSEMBLE


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """The references, each with the fold in which it is held out.

    Attributes:
        references: The references.
        folds: Fold of each unsafe row, and of each safe row.
        requests: Number of the request of each row of both sides.
        refused: Which safe rows are refusals.
    """

    references: ReferenceIndex
    folds: tuple[np.ndarray, np.ndarray]
    requests: tuple[np.ndarray, np.ndarray]
    refused: np.ndarray

    @classmethod
    def of(cls, references: ReferenceIndex, folds: int, seed: int) -> _HeldOut:
        rows = [references.rows(side) for side in ("unsafe", "safe")]
        refused = np.array([not row.benign for row in rows[1]])
        if min(len(rows[0]), refused.sum()) < 2 * folds:
            raise DataError(
                f"{len(rows[0])} unsafe and {refused.sum()} refused references are too few for {folds} folds",
                fix=f"give at least {2 * folds} of each, or name the layer, for example `layer=12`",
            )
        numbers: dict[str, int] = {}
        requests = [
            np.array([numbers.setdefault(prompt_of(row.conversation), len(numbers)) for row in side]) for side in rows
        ]
        if (count := len(set(requests[0].tolist()))) < folds:
            raise DataError(
                f"the unsafe references answer {count} requests, too few for {folds} folds of whole requests",
                fix=f"give answers to at least {folds} requests, or name the layer, for example `layer=12`",
            )
        fold_of = np.random.default_rng(seed).permutation(np.arange(len(numbers)) % folds)
        return cls(references, (fold_of[requests[0]], fold_of[requests[1]]), (requests[0], requests[1]), refused)

    def scores(self, method: str, layer: Layer) -> np.ndarray:
        """Held-out scores of the unsafe rows, then of the safe ones, in deviations of the references in each fold."""
        if method == ENSEMBLE:
            sides = [self.references.rows_at(key) for key in (layer, shift_key(layer))]
        else:
            sides = [self.references.rows_at(shift_key(layer) if method == SHIFT else layer)]
        scores = [np.empty(len(side)) for side in sides[0]]
        for fold in range(int(max(folds.max() for folds in self.folds)) + 1):
            held = [np.flatnonzero(own == fold) for own in self.folds]
            rest = [np.flatnonzero(own != fold) for own in self.folds]
            both = [Ragged.joined([side.take(rows) for side, rows in zip(pair, held, strict=True)]) for pair in sides]
            fitted = [[side.take(rows) for side, rows in zip(pair, rest, strict=True)] for pair in sides]
            benign = ~self.refused[rest[1]]
            if method == ENSEMBLE:
                requests = [asked[rows] for asked, rows in zip(self.requests, rest, strict=True)]
                of_fold = _ensemble(both, fitted, benign, requests)
            else:
                unsafe, safe = fitted[0]
                of_fold = _scored(method, both[0], unsafe, safe, benign)
            scores[0][held[0]], scores[1][held[1]] = of_fold[: len(held[0])], of_fold[len(held[0]) :]
        return np.concatenate(scores)

    def reading(self, method: str, layers: tuple[Layer, ...], scores: np.ndarray) -> Reading:
        unsafe, safe = np.split(scores, [len(self.folds[0])])
        refused = safe[self.refused]
        low, high = self._interval(unsafe, refused)
        return Reading(method, layers, _gap(unsafe, refused), low, high, _auroc(unsafe, safe))

    def _interval(self, unsafe: np.ndarray, refused: np.ndarray) -> tuple[float, float]:
        """Of the gap, by drawing requests with all their rows."""
        names = np.unique(np.concatenate([self.requests[0], self.requests[1][self.refused]]))
        draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=_DRAWS)
        moments = []
        for scores, requests in ((unsafe, self.requests[0]), (refused, self.requests[1][self.refused])):
            place = np.searchsorted(names, requests)
            sums = [np.bincount(place, scores**power, len(names)) for power in (0, 1, 2)]
            count, total, squares = (draws @ column for column in sums)
            mean = total / np.maximum(count, 1)
            moments.append((count, mean, squares / np.maximum(count, 1) - mean**2))
        (n, high, spread), (m, low, other) = moments
        gaps = ((high - low) / np.sqrt(np.maximum((spread + other) / 2, 1e-300)))[(n > 1) & (m > 1)]
        bounds = np.quantile(gaps, [0.025, 0.975]) if len(gaps) else np.full(2, np.nan)
        return float(bounds[0]), float(bounds[1])

    def length_auroc(self, references: ReferenceIndex) -> float:
        """AUROC of the number of characters of the answers."""
        sides = [[len(answered_text(row.conversation)) for row in references.rows(side)] for side in ("unsafe", "safe")]
        return _auroc(*(np.array(side, dtype=float) for side in sides))


def _scored(method: str, rows: Ragged, unsafe: Ragged, safe: Ragged, benign: np.ndarray) -> np.ndarray:
    """Scores of rows, as the method's own class gives them, in deviations of the references that it is fitted to."""
    if method == PROBE:
        direction, offset = boundary(unsafe, safe, benign)
        own = np.concatenate([unsafe.values, safe.values]).astype(np.float64) @ direction
        owners = np.concatenate([unsafe.owners, len(unsafe) + safe.owners])
        return _of_rows(rows.values.astype(np.float64) @ direction + offset, rows, noise_of(own, owners))
    if method == SHIFT:
        both = Coordinates.of(unsafe.values, safe.values[~benign[safe.owners]], True)  # as its paper chooses a layer
        direction = compliance(both.unsafe, both.safe)
        own = np.concatenate([both.unsafe, both.safe]) @ direction
        means = np.bincount(rows.owners, both(rows.values) @ direction, len(rows)) / np.maximum(rows.counts, 1)
        return (means - own.mean()) / max(own.std(), 1e-12)
    against = cast(type[ReferenceScore], method_class(method)).against
    both = Coordinates.of(unsafe.values, safe.values, True)
    few = both.unsafe[spread(unsafe)], both.safe[spread(safe)]
    inside = np.concatenate(few)
    values = against(np.concatenate([both(rows.values), inside]), *few).astype(np.float64)
    found, own = values[: len(rows.values)], values[len(rows.values) :]
    top: np.ndarray = Ragged(found, rows.offsets).largest()[0]
    return (top - own.mean()) / max(own.std(), 1e-12)


def _ensemble(
    rows: Sequence[Ragged], fitted: Sequence[Sequence[Ragged]], benign: np.ndarray, requests: Sequence[np.ndarray]
) -> np.ndarray:
    """Scores of rows by `EnsembleScore` at one layer.

    Args:
        rows: The answers of the rows, and their shifts.
        fitted: Unsafe and safe references, of both.
        benign: Which safe references are ordinary ones.
        requests: Number of the request of each unsafe and of each safe reference.
    """
    parts, inside = [], []
    for own, (unsafe, safe) in zip(rows, fitted, strict=True):
        direction, offset = boundary(unsafe, safe, benign)
        near = Neighbourhood.of((unsafe, safe), requests)
        parts.append((own.values.astype(np.float64) @ direction + offset + near.score(own.values)) / 2)
        some = [side.values[place] for side, place in zip((unsafe, safe), near.places, strict=True)]
        inside.append((np.concatenate(some).astype(np.float64) @ direction + near.own) / 2)
    return _of_rows(np.mean(parts, axis=0), rows[0], noise_of(np.mean(inside, axis=0), near.rows))


def _of_rows(spans: np.ndarray, rows: Ragged, noise: float) -> np.ndarray:
    """The score of each row from those of its spans (m,), as a probe's are."""
    return part_and_whole(Ragged(spans, rows.offsets), None, noise).largest()[0]


def _gap(high: np.ndarray, low: np.ndarray) -> float:
    deviation = np.sqrt((high.var() + low.var()) / 2)
    return float((high.mean() - low.mean()) / deviation) if deviation > 0 else 0.0


def _auroc(high: np.ndarray, low: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.repeat([1, 0], [len(high), len(low)]), np.concatenate([high, low])))
