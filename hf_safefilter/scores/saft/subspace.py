"""The leading directions of a data set's vectors: fitted, stored, and projected on."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.checks import require_choice, require_whole
from hf_safefilter.columns import Layer, answer_key, embedding_column, is_shift
from hf_safefilter.data.batch import arrow_vectors
from hf_safefilter.data.labels import names_of
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.splits import parts_of
from hf_safefilter.data.vectors import by_piece, lengths
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores.base import record_batches
from hf_safefilter.scores.saft.leading import Moments
from hf_safefilter.scores.saft.orient import Orientation, orient
from hf_safefilter.storage.fitted import Fitted

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_safefilter.references import ReferenceIndex

WEIGHTS = ("none", "sigma")
_FILE = "subspace.safetensors"


class SaftSubspace(Fitted):
    """Leading directions of a data set's vectors at one layer; made by `fit_saft`.

    `facts` has the options, the numbers of rows and spans fitted and of rows skipped, and how the sign was chosen.
    """

    KIND = "saft_subspace"
    VERSION = 2

    @property
    def layer(self) -> Layer:
        """The layer at which it was fitted."""
        return self.facts["layer"]

    @property
    def directions(self) -> np.ndarray:
        """Orthonormal directions V, float64 (d, k), strongest first."""
        return self._tensors["directions"]

    @property
    def sigma(self) -> np.ndarray:
        """Their singular values, float64 (k,)."""
        return self._tensors["sigma"]

    @property
    def mean(self) -> np.ndarray:
        """The mean that is subtracted, float64 (d,); zeros unless centred."""
        return self._tensors["mean"]

    @property
    def sign(self) -> int:
        """1, or -1 where labelled rows showed that a small projection is the dangerous side."""
        return self.facts["sign"]

    @property
    def ends(self) -> tuple[int, ...] | None:
        """For each direction 1 or -1: at which end the unsafe references lie; None where there were none."""
        return None if self.facts["ends"] is None else tuple(self.facts["ends"])

    def strength(self, rows: np.ndarray) -> np.ndarray:
        """How strong `rows` (n, d) float32 or float64 are in the directions; (n,) in the same dtype.

        sign * mean_j (w_j <row - mean, v_j>)^2, or with `ends` the signed form: sign * mean_j e_j w_j <row - mean, v_j>
        """
        size = lengths(rows)
        directions, weights, mean = self._cast(rows.dtype)
        if self.facts["normalize_rows"]:
            rows = rows / size[:, None]
        if self.facts["center"]:
            rows = rows - mean
        projections = np.vecdot(rows[:, None, :], directions) * weights
        of_directions = np.square(projections) if self.ends is None else projections * np.array(self.ends, rows.dtype)
        return self.sign * np.where(np.isnan(size), np.nan, of_directions.mean(axis=1))

    def _cast(self, kind: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if kind not in self._casts:
            weights = self.sigma if self.facts["weight"] == "sigma" else np.ones_like(self.sigma)
            arrays = np.ascontiguousarray(self.directions.T), weights, self.mean
            self._casts[kind] = tuple(array.astype(kind) for array in arrays)
        return self._casts[kind]

    @cached_property
    def _casts(self) -> dict[np.dtype, Any]:
        return {}

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return load(self.bytes_of(_FILE))


def fit_saft(
    ds: Dataset | DatasetDict | IterableDataset,
    layer: Layer,
    *,
    k: int = 1,
    center: bool | None = None,
    normalize_rows: bool = True,
    weight: str = "none",
    references: ReferenceIndex | None = None,
    label: str | None = None,
    unsafe: str | int | bool = "unsafe",
) -> SaftSubspace:
    """Find the leading directions of the vectors of `ds` at `layer`, in one pass and a few record batches of memory.

    That a large projection is harmful is an assumption: uncentred, the first direction is nearly the mean of all rows,
    and with few harmful rows (under 5 %) it is topic or length. Without labels or references this score belongs beside
    the controls. `references` give the signed form: each direction points to where the unsafe ones lie, away from the
    refusals, and the projection is not squared. Rows with a `label` can at least decide the sign.

    Args:
        ds: Embedded rows, all splits together; rows that could not be read are skipped and counted.
        layer: The layer whose column is read.
        k: Number of directions.
        center: Subtract the mean of the rows; None does so for the signed form alone.
        normalize_rows: Scale each row to length one first; else long vectors decide.
        weight: "none", or "sigma" to weight each direction by its singular value.
        references: References that were read at `layer` as the rows were, for the signed form.
        label: Column with labels of at least 20 rows (null elsewhere); the sign is chosen by their AUROC.
        unsafe: The value in that column that means unsafe.

    Raises:
        MissingError: The column of the layer or of the labels is missing.
        OptionError: `k` is below 1, `weight` is unknown, the signed form without a mean that is subtracted, or a shift.
        DataError: No row can be read, the rows span fewer than `k` directions, or there are too few labels.

    Source: SAFT, arXiv 2410.10014, reconstructed; see `hf_safefilter.scores.saft`.
    """
    require_whole("k", k, least=1)
    require_choice("weight", weight, WEIGHTS)
    if center is False and references is not None:
        raise OptionError("uncentred directions have no two ends", fix="leave `center` out, or the references")
    if is_shift(layer):
        raise OptionError("saft reads answers as they are, without a shift", fix=f"use `layer={answer_key(layer)!r}`")
    center = references is not None if center is None else center
    column = embedding_column(layer)
    fix = f"ds = ds.map(EmbedLayers(model, layers=[{layer!r}]), batched=True)"
    moments, n_rows, n_read = Moments(center), 0, 0
    for table in record_batches(ds, [column], fix=fix):
        vectors = arrow_vectors(table[column], column)
        n_rows += len(vectors)
        if len(vectors.values):
            pieces = by_piece(vectors.values, lambda piece: _readable(piece, normalize_rows))
            moments.add(np.concatenate([kept for kept, _ in pieces]))
            n_read += len(np.unique(vectors.owners[np.concatenate([readable for _, readable in pieces])]))
    if not moments.count:
        raise DataError(f"column {column!r} holds no vector that can be read", found=f"{n_rows} rows", fix=fix)
    directions, sigma, mean = moments.leading(k)
    facts: dict[str, Any] = {"layer": layer, "center": center, "normalize_rows": normalize_rows, "weight": weight}
    facts |= {"rows": n_read, "spans": moments.count, "skipped": n_rows - n_read}
    facts |= {"sign": 1, "orientation": None, "ends": None, "references": None}
    if references is not None:
        sides = references.vectors(layer)[0], references.refused(layer)
        unsafe, refused = (_readable(side, normalize_rows)[0].mean(axis=0) @ directions for side in sides)
        facts |= {"ends": np.where(unsafe >= refused, 1, -1).tolist(), "references": references.digest}
    subspace = _make(facts, directions, sigma, mean)
    if label is None:
        return subspace
    orientation = _orient(subspace, ds, label, unsafe)
    return _make(facts | {"sign": orientation.sign, "orientation": orientation.facts()}, directions, sigma, mean)


def _readable(piece: np.ndarray, normalize_rows: bool) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a piece that can be read, and which these are, bool `(n,)`."""
    size = lengths(piece)
    readable = ~np.isnan(size)
    kept = piece[readable] / size[readable, None] if normalize_rows else piece[readable]
    return kept, readable


def _make(facts: dict[str, Any], directions: np.ndarray, sigma: np.ndarray, mean: np.ndarray) -> SaftSubspace:
    from safetensors.numpy import save

    tensors = {"directions": np.ascontiguousarray(directions), "sigma": sigma, "mean": mean}
    return SaftSubspace.make(facts | {"k": len(sigma)}, {_FILE: save(tensors)})


def _orient(
    subspace: SaftSubspace, ds: Dataset | DatasetDict | IterableDataset, label: str, unsafe: str | int | bool
) -> Orientation:
    column = embedding_column(subspace.layer)
    scores, labels = [], []
    for table in record_batches(ds, [column, label], fix="name the column that holds labels"):
        table = table.filter(table[label].is_valid())
        if table.num_rows:
            vectors = arrow_vectors(table[column], column)
            spans = np.concatenate(by_piece(vectors.values, subspace.strength)).astype(np.float32)
            scores.append(Ragged(spans, vectors.offsets).largest()[0])
            labels.extend(table[label].to_pylist())
    names = next((found for part in parts_of(ds) if (found := names_of(part, label))), [])
    return orient(np.concatenate(scores) if scores else np.empty(0), labels, label, unsafe, names)
