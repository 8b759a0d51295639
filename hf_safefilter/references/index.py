"""ReferenceIndex: unsafe and safe reference rows, their vectors at each layer, and the search among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.vectors import by_piece, unit
from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.references.files import ROWS, SIDES, VECTORS, ReferenceRow, index_name, read_rows, to_files
from hf_safefilter.references.flat import from_bytes, search
from hf_safefilter.references.read_sides import read_sides
from hf_safefilter.storage.fitted import Fitted

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.storage.hub_commit import Pushed


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The reference rows nearest to each of n vectors, nearest first.

    Attributes:
        similarity: cosines, float32 (n, k); NaN for a vector that cannot be compared.
        position: places among the rows of the side, int64 (n, k); -1 for such a vector.
        side: all reference rows of the side that was searched.
    """

    similarity: np.ndarray
    position: np.ndarray
    side: tuple[ReferenceRow, ...]

    @property
    def row_id(self) -> np.ndarray:
        """Ids of the nearest rows, strings (n, k); "" for a vector that cannot be compared."""
        # The empty id stands last, which is where position -1 points.
        return np.array([*(row.row_id for row in self.side), ""])[self.position]

    @property
    def rows(self) -> list[list[ReferenceRow]]:
        """The nearest rows themselves; none for a vector that cannot be compared."""
        return [[self.side[place] for place in places if place >= 0] for places in self.position.tolist()]


class ReferenceIndex(Fitted):
    """Reference rows with their vectors and FAISS indexes; `build` one, or `load` one that was saved.

    On disk: `vectors.safetensors` (float32, side and layer), `rows.parquet`, one FAISS inner-product index a layer and
    side, and a manifest with the licence, the source, how the rows were read, and the sha256 of each file.
    """

    KIND = "references"

    @classmethod
    def build(
        cls,
        unsafe: Dataset | Iterable[Mapping[str, Any]],
        safe: Dataset | Iterable[Mapping[str, Any]],
        embed: EmbedLayers,
        *,
        license: str,
        source: str,
    ) -> Self:
        """Embed both sides with `embed` and index them.

        Args:
            unsafe: harmful requests answered, in any known row shape.
            safe: their counterparts, e.g. the same requests refused.
            embed: the step that the data set is embedded with; all its layers are kept.
            license: of the rows, e.g. ``mit``.
            source: where the rows come from.

        Raises:
            OptionError: no licence or no source.
            DataError: a side is empty, repeats one row only, or shares rows with the other; a row cannot be read;
                both sides have the same mean direction at some layer.
        """
        for name, value in (("license", license), ("source", source)):
            if not isinstance(value, str) or not value.strip():
                raise OptionError(f"references need a {name}", found=repr(value), fix=f"pass {name}='...'")
        sides = read_sides({"unsafe": unsafe, "safe": safe}, embed)
        facts = {
            "license": license.strip(),
            "source": source.strip(),
            "embed": embed.describe(),
            "layers": list(sides["unsafe"].vectors),
            "counts": {side: len(read.ids) for side, read in sides.items()},
        }
        return cls.make(facts, to_files(sides))

    @classmethod
    def starter(cls, embed: EmbedLayers) -> Self:
        """Build the small reference set that ships with this package."""
        from hf_safefilter.starter import LICENSE, SOURCE, starter_rows

        return cls.build(starter_rows("unsafe"), starter_rows("safe"), embed, license=LICENSE, source=SOURCE)

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None, *, token: str | None = None) -> Self:
        """Fetch references from a data set repository on the Hub, verify and keep them."""
        from hf_safefilter.references.hub import fetch

        with fetch(repo_id, revision, token) as folder:
            return cls.load(folder)

    def push(self, repo_id: str, *, private: bool = True, token: str | None = None) -> Pushed:
        """Publish the references, texts included, with a short card, in one commit to a data set repository."""
        from hf_safefilter.references.hub import push

        return push(self, self.summary(), repo_id, private=private, token=token)

    @property
    def license(self) -> str:
        """Licence of the reference rows."""
        return self.facts["license"]

    @property
    def source(self) -> str:
        """Where the reference rows come from."""
        return self.facts["source"]

    @property
    def embed(self) -> dict[str, Any]:
        """How the rows were read: model, commit, position and so on, as `EmbedLayers.describe` says it."""
        return dict(self.facts["embed"])

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers whose vectors are here."""
        return tuple(self.facts["layers"])

    @property
    def counts(self) -> dict[str, int]:
        """Rows on each side."""
        return {side: self.facts["counts"][side] for side in SIDES}

    def summary(self) -> dict[str, Any]:
        """What a card says of these references; no text of theirs."""
        return {
            "digest": self.digest,
            "license": self.license,
            "source": self.source,
            "unsafe": self.counts["unsafe"],
            "safe": self.counts["safe"],
            "model": self.embed.get("model"),
            "revision": self.embed.get("revision"),
            "layers": list(self.layers),
        }

    def vectors(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """Unsafe (m, d) and safe (s, d) vectors of a layer as they were read, float32.

        Raises:
            MissingError: the references were not read at this layer.
        """
        if layer not in self.layers:
            raise MissingError(
                f"these references have no layer {layer!r}",
                found=", ".join(map(str, self.layers)),
                fix=f"build them with EmbedLayers(..., layers=[{layer!r}])",
            )
        return self._tensors[f"unsafe.{layer}"], self._tensors[f"safe.{layer}"]

    def unit(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """The same vectors scaled to length one."""
        unsafe, safe = self.vectors(layer)
        return unit(unsafe), unit(safe)

    def index(self, layer: Layer, side: str) -> Any:
        """The verified `faiss.IndexFlatIP` over the unit vectors of a side at a layer."""
        if side not in SIDES:
            raise OptionError(f"{side!r} is not a side", fix="use 'unsafe' or 'safe'")
        name = index_name(layer, side)
        if name not in self._indexes:
            vectors = self.unit(layer)[SIDES.index(side)]
            self._indexes[name] = from_bytes(self.bytes_of(name), vectors, name)
        return self._indexes[name]

    def search(self, vectors: np.ndarray, layer: Layer, k: int, side: str = "unsafe") -> Neighbours:
        """The `k` reference rows of a side with the largest cosine to each of `vectors` (n, d).

        Raises:
            OptionError: `k` is not between 1 and the number of rows on that side.
            DataError: vectors of another length than the references'.
        """
        index = self.index(layer, side)
        check_count("k", k, index.ntotal, f"{side} references")
        vectors = np.atleast_2d(vectors)
        if vectors.shape[1] != index.d:
            raise DataError(f"vectors of length {vectors.shape[1]} cannot be compared with references of {index.d}")
        found = by_piece(vectors, lambda piece: search(index, piece, k))
        similarity, position = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Neighbours(similarity, position, self.rows(side))

    def rows(self, side: str) -> tuple[ReferenceRow, ...]:
        """The reference rows of a side, in their own order."""
        return tuple(row for row in self._rows if row.side == side)

    def overlap(self, row_ids: Iterable[str]) -> list[str]:
        """Those of `row_ids` that stand among the references too: each once, in the order given.

        Such a row is compared with itself. It should not be judged by these references.
        """
        ours = {row.row_id for row in self._rows}
        return list(dict.fromkeys(given for given in row_ids if given in ours))

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return load(self.bytes_of(VECTORS))

    @cached_property
    def _rows(self) -> tuple[ReferenceRow, ...]:
        return read_rows(self.bytes_of(ROWS))

    @cached_property
    def _indexes(self) -> dict[str, Any]:
        return {}


def references(digest: str) -> ReferenceIndex:
    """The references with this digest from this user's store, opened once a process."""
    return ReferenceIndex.of(digest)


def check_count(name: str, count: int, there: int, of_what: str) -> None:
    """Raise `OptionError` unless `count` is an integer from 1 to `there`."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= there:
        raise OptionError(f"{name}={count!r} does not fit {there} {of_what}", fix=f"use {name} from 1 to {there}")
