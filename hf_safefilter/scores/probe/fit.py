"""`fit_probe`: a linear probe from references, and from labelled rows of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.checks import is_finite, require_choice, require_number
from hf_safefilter.columns import SPANS, Layer, answer_key, embedding_columns, is_shift
from hf_safefilter.data.batch import Batch, arrow_vectors
from hf_safefilter.data.labels import names_of, truth_of
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.splits import parts_of
from hf_safefilter.data.vectors import lengths
from hf_safefilter.errors import DataError, IntegrityError, OptionError
from hf_safefilter.references import SIDES, ReferenceIndex
from hf_safefilter.references.standard_scaling import Scaling
from hf_safefilter.scores.base import chosen_side, layer_vectors, record_batches
from hf_safefilter.scores.probe.discriminant import Examples, lda, logistic
from hf_safefilter.scores.probe.noise import noise_of
from hf_safefilter.storage.fitted import Fitted

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

FORMS = ("lda", "logistic")
REFUSED = 2 / 3
"""The weight of the refusals among the safe references. The same request answered or refused is what a probe is to tell
apart; ordinary rows keep it from going by topic."""

_FILE = "probe.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Boundaries:
    """A direction and an offset for each of some layers.

    Attributes:
        directions: float64 `(layers, d)`, in the coordinates of the model.
        offsets: float64 `(layers,)`.
        noise: Standard deviation of the scores of the examples about the mean of their row.
    """

    directions: np.ndarray
    offsets: np.ndarray
    noise: float

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """See `Probe.score`."""
        count, width = self.directions.shape
        parts = vectors.reshape(len(vectors), count, width)
        values = np.einsum("nld,ld->nl", parts.astype(np.float64), self.directions) + self.offsets
        whole = np.isfinite(np.stack([lengths(parts[:, layer]) for layer in range(count)])).all(axis=0)
        return np.where(whole, values.mean(axis=1), np.nan)


class Probe(Fitted):
    """A direction and an offset for each of its layers; made by `fit_probe`.

    `facts` has the layers, the form and its options, the digest of the references and how they were read, the numbers
    of examples, and the noise of their windows.
    """

    KIND = "probe"
    VERSION = 3

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers at which it was fitted."""
        return tuple(self.facts["layers"])

    @property
    def directions(self) -> np.ndarray:
        """float64 `(layers, d)`, in the coordinates of the model."""
        return self._tensors["directions"]

    @property
    def offsets(self) -> np.ndarray:
        """float64 `(layers,)`."""
        return self._tensors["offsets"]

    @property
    def noise(self) -> float:
        """Standard deviation of the scores of its examples' windows about the mean of their row.

        Raises:
            IntegrityError: The probe states none.
        """
        noise = self.facts.get("noise")
        if noise is None or not is_finite(noise) or noise < 0:
            raise IntegrityError(
                "a probe does not state the noise of its windows", found=repr(noise), fix="fit it again"
            )
        return float(noise)

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Mean distance from the boundaries, in deviations of the examples, positive where unsafe.

        Args:
            vectors: `(n, layers * d)`: of each span the vector of the first layer, then of the second, ...

        Returns:
            float64 `(n,)`, NaN where a vector is zero or not finite.
        """
        return Boundaries(self.directions, self.offsets, noise=0).score(vectors)  # which does not depend on the noise

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return load(self.bytes_of(_FILE))


def fit_probe(
    references: ReferenceIndex,
    layers: Layer | Sequence[Layer],
    *,
    form: str = "lda",
    shrinkage: float = 0.3,
    strength: float = 0.01,
    labeled: Dataset | DatasetDict | None = None,
    label: str = "label",
    unsafe: str | int | bool = "unsafe",
    weight: float = 1.0,
    log: Mapping[str, Any] | None = None,
) -> Probe:
    """Fit a probe that tells unsafe references from safe ones, and labelled rows alike.

    Every span is an example; all spans of a row together weigh as much as a row of one span. With several layers there
    is a boundary at each, and a row has the mean of its distances.

    Args:
        references: Unsafe answers, refusals and ordinary rows.
        layers: The layer, or layers, to fit at.
        form: "lda" (shrinkage linear discriminant analysis, closed form) or "logistic" (L2 logistic regression).
        shrinkage: For "lda", in (0, 1].
        strength: For "logistic": inverse of the penalty.
        labeled: Embedded rows with labels; rows without a label, or that could not be read, are left out.
        label: Their column of labels.
        unsafe: The value in it that means unsafe.
        weight: Weight of a labelled row in that of a reference.
        log: Where the labels come from, as plain JSON values, for the record.

    Raises:
        OptionError: An option that makes no sense.
        MissingError: The references were not read at a layer, or a column is missing.
        DataError: There are no labels of both kinds, or nothing tells the classes apart.
    """
    require_choice("form", form, FORMS)
    require_number("shrinkage", shrinkage, above=0, most=1)
    require_number("strength", strength, above=0)
    require_number("weight", weight, above=0)
    names = (layers,) if isinstance(layers, (int, str)) else tuple(layers)
    if not names or len(set(names)) < len(names):
        raise OptionError(f"`layers={list(names)}` names no layer, or one twice", fix="name each layer once")
    counts = {side: references.counts[side] for side in SIDES}
    sets = []
    for layer in names:
        examples = reference_examples(references, layer)
        if labeled is not None:
            own = _labeled(labeled, layer, label, unsafe, examples.vectors.shape[1])
            counts |= {f"labeled_{side}": round(own.weights[own.unsafe == (side == "unsafe")].sum()) for side in SIDES}
            examples = examples.joined(own, weight)
        sets.append(examples)
    fitted = boundaries(sets, form, shrinkage if form == "lda" else strength)
    facts = {"layers": list(names), "form": form, "shrinkage": shrinkage, "strength": strength, "weight": weight}
    facts |= {"references": references.digest, "embed": references.embed, "counts": counts}
    facts |= {"noise": fitted.noise}
    facts |= {} if log is None else {"labels": dict(log)}
    return _stored(fitted, facts)


def boundary(unsafe: Ragged, safe: Ragged, benign: np.ndarray, shrinkage: float = 0.3) -> tuple[np.ndarray, float]:
    """Direction (d,) and offset of the default probe between the spans of unsafe and of safe rows.

    Args:
        unsafe: Spans of the unsafe rows.
        safe: Spans of the safe rows.
        benign: Which safe rows are ordinary ones, and not refusals, bool (rows,).
        shrinkage: See `fit_probe`.
    """
    return _boundary(_examples(unsafe, safe, benign), "lda", shrinkage)


def boundaries(sets: Sequence[Examples], form: str = "lda", option: float = 0.3) -> Boundaries:
    """What `fit_probe` fits, in memory alone.

    Args:
        sets: The examples at each layer; see `reference_examples`.
        form: "lda" or "logistic".
        option: The shrinkage, or the strength.
    """
    directions, offsets = zip(*(_boundary(examples, form, option) for examples in sets), strict=True)
    if any(not np.array_equal(examples.rows, sets[0].rows) for examples in sets):
        raise DataError(
            "the labelled rows were not read alike at all layers", fix="embed them at all layers in one pass"
        )
    scores = [
        examples.vectors @ direction + offset
        for examples, direction, offset in zip(sets, directions, offsets, strict=True)
    ]
    return Boundaries(np.stack(directions), np.array(offsets), noise_of(np.mean(scores, axis=0), sets[0].rows))


def reference_examples(references: ReferenceIndex, layer: Layer) -> Examples:
    """The spans of the references at a layer, with the weights that a probe gives them."""
    unsafe, safe = references.rows_at(layer)
    return _examples(unsafe, safe, np.array([row.benign for row in references.rows("safe")]))


def _examples(unsafe: Ragged, safe: Ragged, benign: np.ndarray) -> Examples:
    rows = np.ones(len(safe))
    if benign.any() and not benign.all():
        for kind, share in ((~benign, REFUSED), (benign, 1 - REFUSED)):
            rows[kind] = share * len(safe) / kind.sum()
    weights = [1 / unsafe.counts[unsafe.owners], rows[safe.owners] / safe.counts[safe.owners]]
    return Examples(
        np.concatenate([unsafe.values, safe.values]).astype(np.float64),
        np.repeat([True, False], [len(unsafe.values), len(safe.values)]),
        np.concatenate(weights),
        np.concatenate([unsafe.owners, len(unsafe) + safe.owners]),
    )


def _boundary(examples: Examples, form: str, option: float) -> tuple[np.ndarray, float]:
    """Direction and offset in the coordinates of the model; scores of the examples have deviation 1."""
    scaling = Scaling.of(examples.vectors[examples.unsafe], examples.vectors[~examples.unsafe])
    standard = Examples(scaling(examples.vectors), examples.unsafe, examples.weights, examples.rows)
    direction, offset = lda(standard, option) if form == "lda" else logistic(standard, option)
    scores = standard.vectors @ direction + offset
    middle = np.average(scores, weights=standard.balanced())
    spread = np.sqrt(np.average(np.square(scores - middle), weights=standard.balanced()))
    if not (np.isfinite(spread) and spread > 0):
        raise DataError("no direction tells the classes apart", fix="use other rows, or another layer")
    direction = direction / scaling.deviation / spread
    return direction, float(offset / spread - direction @ scaling.mean)


def _stored(fitted: Boundaries, facts: dict[str, Any]) -> Probe:
    from safetensors.numpy import save

    return Probe.make(facts, {_FILE: save({"directions": fitted.directions, "offsets": fitted.offsets})})


def _labeled(rows: Dataset | DatasetDict, layer: Layer, label: str, unsafe: str | int | bool, width: int) -> Examples:
    columns = embedding_columns(layer)
    parts: list[Ragged] = []
    cells: list[Any] = []
    where = f"{answer_key(layer)!r}{' and position mean,last_prompt' * is_shift(layer)}"
    fix = f"embed the rows at layer {where}, with their labels"
    read = [SPANS] if all(SPANS in part.column_names for part in parts_of(rows)) else []
    for table in record_batches(rows, [*columns, *read, label], fix=fix):
        first = arrow_vectors(table[columns[0]], columns[0])
        if len(first.values) and first.values.shape[1] != width:
            raise OptionError(
                f"the labelled rows were read by another model: {first.values.shape[1]} numbers, not {width}",
                fix="embed them with the step that read the references",
            )
        batch = Batch(table)
        parts.append(chosen_side(layer_vectors(batch, layer, width), batch.spans()))
        cells += table[label].to_pylist()
    splits = parts_of(rows)
    names = next((found for part in splits if (found := names_of(part, label))), [])
    both, classes = Ragged.joined(parts), truth_of(cells, label, unsafe, names)
    known = np.isfinite(classes) & (both.counts > 0)
    if not known.any() or len(set(classes[known].tolist())) < 2:
        raise DataError("the labelled rows that could be read are not of both kinds", fix="label more rows")
    used = both.take(np.flatnonzero(known))
    classes = classes[known]
    weights = 1 / used.counts[used.owners]
    return Examples(used.values.astype(np.float64), classes[used.owners] > 0.5, weights, used.owners)
