"""ReferenceIndex: unsafe and safe reference rows, their vectors at each layer, and the search among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_safefilter.checks import is_whole, require_choice
from hf_safefilter.columns import Layer, is_shift, prompt_key, stored_keys
from hf_safefilter.data.ragged import Ragged, offsets_of
from hf_safefilter.data.vectors import by_piece, unit
from hf_safefilter.errors import DataError, MissingError, OptionError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.references.files import (
    ROWS,
    SIDES,
    VECTORS,
    ReferenceRow,
    Side,
    index_name,
    read_rows,
    read_vectors,
    require_sound_facts,
    to_files,
)
from hf_safefilter.references.flat import flat_index, from_bytes, search
from hf_safefilter.references.read_sides import read_sides
from hf_safefilter.storage.fitted import Fitted

if TYPE_CHECKING:
    import faiss
    from datasets import Dataset

    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.storage.hub_commit import Pushed


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The reference rows nearest to each of n vectors, nearest first.

    Attributes:
        similarity: Cosines, float32 (n, k); NaN for a vector that cannot be compared.
        position: Indices among the rows of the side, int64 (n, k); -1 for a vector that cannot be compared.
        side: All reference rows of the side that was searched.
    """

    similarity: np.ndarray
    position: np.ndarray
    side: tuple[ReferenceRow, ...]

    @property
    def row_id(self) -> np.ndarray:
        """Ids of the nearest rows, strings (n, k); "" for a vector that cannot be compared."""
        # The empty id is the last entry, so that index -1 selects it.
        return np.array([*(row.row_id for row in self.side), ""])[self.position]

    @property
    def rows(self) -> list[list[ReferenceRow]]:
        """The nearest rows; an empty list for a vector that cannot be compared."""
        return [[self.side[index] for index in indices if index >= 0] for indices in self.position.tolist()]


class ReferenceIndex(Fitted):
    """Reference rows with their vectors and FAISS indexes; `build` one, or `load` one that was saved.

    On disk: `vectors.safetensors` (float32, by side and layer), `rows.parquet`, one FAISS inner-product index for each
    layer and side, and a manifest with the licence, the source, how the rows were read, and the sha256 of each file.
    """

    KIND = "references"
    VERSION = 2

    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        require_sound_facts(self.facts)

    @classmethod
    def build(
        cls,
        unsafe: Dataset | Iterable[Mapping[str, Any]],
        safe: Dataset | Iterable[Mapping[str, Any]],
        embed: EmbedLayers,
        *,
        benign: Dataset | Iterable[Mapping[str, Any]] | None = None,
        license: str,
        source: str,
    ) -> Self:
        """Embed both sides with `embed` and index them.

        Args:
            unsafe: Harmful requests with answers, in any known row shape.
            safe: Their counterparts, e.g. the same requests with refusals.
            embed: The step that the data set is embedded with; all its layers are stored.
            benign: Ordinary requests answered, for the safe side: without them, what only sounds unlike a refusal is
                taken for harm.
            license: Licence of the rows, e.g. ``mit``.
            source: Where the rows come from.

        Raises:
            OptionError: The licence or the source is missing.
            DataError: A side is empty, repeats one single row, or shares rows with the other; or a row cannot be read;
                or both sides have the same mean direction at a layer.
        """
        for name, value in (("license", license), ("source", source)):
            if not isinstance(value, str) or not value.strip():
                raise OptionError(f"references need a {name}", found=repr(value), fix=f"pass `{name}=...`")
        rows = {"unsafe": unsafe, "safe": safe} | ({"benign": benign} if benign is not None else {})
        return cls.of_sides(read_sides(rows, embed), embed.describe(), license=license, source=source)

    @classmethod
    def of_sides(
        cls,
        sides: Mapping[str, Side],
        embed: Mapping[str, Any],
        *,
        license: str,
        source: str,
        more: Mapping[str, Any] | None = None,
    ) -> Self:
        """References of rows that were read.

        Args:
            sides: Side -> its rows with their vectors.
            embed: How they were read, as `EmbedLayers.describe` says.
            license: See `build`.
            source: See `build`.
            more: Further facts for the manifest.
        """
        facts = {
            **(more or {}),
            "license": shown(license.strip()),
            "source": shown(source.strip()),
            "embed": dict(embed),
            "layers": list(sides["unsafe"].vectors),
            "counts": {side: len(read.ids) for side, read in sides.items()},
            "benign": sides["safe"].benign,
            "spans": {side: sum(read.spans) for side, read in sides.items()},
            "truncated": {side: read.truncated for side, read in sides.items()},
        }
        return cls.make(facts, to_files(sides))

    @classmethod
    def starter(cls, embed: EmbedLayers, trait: str = "harm") -> Self:
        """Build the small reference set that ships with this package.

        Args:
            embed: The step that the data set is embedded with.
            trait: What the unsafe side shows: "harm", or one of `starter.TRAITS`, for a `ShiftScore` that measures how
                far rows move the model towards that trait (persona vectors, arXiv 2507.21509).

        Raises:
            OptionError: There is no such trait.
        """
        from hf_safefilter.starter import LICENSE, SOURCE, TRAITS, starter_rows

        require_choice("trait", trait, ("harm", *TRAITS))
        if trait == "harm":
            unsafe, safe, benign = map(starter_rows, ("unsafe", "safe", "benign"))
            return cls.build(unsafe, safe, embed, benign=benign, license=LICENSE, source=SOURCE)
        shown, plain = ([row for row in starter_rows(trait) if row["label"] == label] for label in ("unsafe", "safe"))
        return cls.build(shown, plain, embed, license=LICENSE, source=f"{SOURCE}: {trait}")

    @classmethod
    def from_hub(cls, repo_id: str, revision: str | None = None, *, token: str | None = None) -> Self:
        """Fetch references from a data set repository on the Hub, verify them, and copy them into the store."""
        from hf_safefilter.references.hub import fetch

        with fetch(repo_id, revision, token) as folder:
            return cls.load(folder)

    def push(self, repo_id: str, *, private: bool = True, token: str | None = None) -> Pushed:
        """Publish the references, with their texts and a short card, in one commit to a data set repository."""
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
        """How the rows were read: model, commit, position and so on, as `EmbedLayers.describe` returns it."""
        return dict(self.facts["embed"])

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers whose vectors are stored."""
        return tuple(self.facts["layers"])

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows on each side; `benign` of the safe ones are ordinary rows and not refusals."""
        return {side: self.facts["counts"][side] for side in SIDES}

    @property
    def benign(self) -> int:
        """Number of ordinary rows on the safe side, its last ones."""
        return self.facts["benign"]

    @property
    def rows_digest(self) -> str:
        """sha256 over the ids of the rows of both sides, in order: that of the texts, whatever has read them."""
        lines = [f"{side} {row.row_id}\n" for side in SIDES for row in self.rows(side)]
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Facts about these references for a card; they hold no text of the rows."""
        return {
            "digest": self.digest,
            "rows": self.rows_digest,
            "license": self.license,
            "source": self.source,
            "unsafe": self.counts["unsafe"],
            "safe": self.counts["safe"],
            "benign": self.benign,
            "truncated": sum(self.facts["truncated"].values()),
            "model": self.embed.get("model"),
            "revision": self.embed.get("revision"),
            "layers": list(self.layers),
        }

    def vectors(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """Unsafe (m, d) and safe (s, d) vectors of a layer, not scaled, float32; one for each span of each row.

        Raises:
            MissingError: The references were not read at this layer, or, for a shift, at the end of the prompt.
        """
        if is_shift(layer):
            answers, prompts = map(self.vectors, stored_keys(layer))
            return answers[0] - prompts[0], answers[1] - prompts[1]
        if layer not in self.layers:
            block = str(layer).partition("_")[0]
            if layer == prompt_key(block) and block in map(str, self.layers):
                raise MissingError(
                    f"the references were not read at the end of the prompt: they have no layer {layer!r}",
                    found=", ".join(map(str, self.layers)),
                    fix='build them with EmbedLayers(..., position="mean,last_prompt")',
                )
            raise MissingError(
                f"these references have no layer {layer!r}",
                found=", ".join(map(str, self.layers)),
                fix=f"build them with EmbedLayers(..., layers=[{str(layer).partition('_')[0]}])",
            )
        return self._tensors[f"unsafe.{layer}"], self._tensors[f"safe.{layer}"]

    def rows_at(self, layer: Layer) -> tuple[Ragged, Ragged]:
        """The same, row by row; raises as `vectors` does."""
        unsafe, safe = (
            Ragged(vectors, offsets_of(np.bincount(self.owners(side))))
            for vectors, side in zip(self.vectors(layer), SIDES, strict=True)
        )
        return unsafe, safe

    def refused(self, layer: Layer) -> np.ndarray:
        """The vectors of the refusals alone, `(r, d)`: those of the safe side without its ordinary rows."""
        _, safe = self.vectors(layer)
        return safe[self.owners("safe") < self.counts["safe"] - self.benign]

    def owners(self, side: str) -> np.ndarray:
        """Index of the row that each vector of a side belongs to, int64 (m,)."""
        rows = self.rows(side)
        return np.repeat(np.arange(len(rows)), [row.spans for row in rows])

    def require_one_span_each(self, why: str) -> None:
        """Raise `DataError` unless each row has one vector; `why` says what needs this."""
        for side in SIDES:
            several = sum(row.spans > 1 for row in self.rows(side))
            if several:
                raise DataError(
                    f"{why}, so each must be read in one span",
                    found=f"{several} {side} references of several turns or windows",
                    fix="build them with `window=None` from rows of one answer each",
                )

    def unit(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a layer, scaled to length one."""
        unsafe, safe = self.vectors(layer)
        return unit(unsafe), unit(safe)

    def index(self, layer: Layer, side: str) -> faiss.IndexFlatIP:
        """The verified `faiss.IndexFlatIP` over the unit vectors of a side at a layer; of a shift, one made now."""
        if side not in SIDES:
            raise OptionError(f"`side={side!r}` is not a side of the references", fix="use 'unsafe' or 'safe'")
        if is_shift(layer):
            return flat_index(self.unit(layer)[SIDES.index(side)])
        name = index_name(layer, side)
        if name not in self._indexes:
            vectors = self.unit(layer)[SIDES.index(side)]
            self._indexes[name] = from_bytes(self.bytes_of(name), vectors, name)
        return self._indexes[name]

    def search(self, vectors: np.ndarray, layer: Layer, k: int, side: str = "unsafe") -> Neighbours:
        """The `k` reference rows of a side with the largest cosine to each of `vectors` (n, d).

        A row that was read in several spans may be there several times.

        Raises:
            OptionError: `k` is not between 1 and the number of vectors on that side.
            DataError: The vectors have another length than those of the references.
        """
        index = self.index(layer, side)
        check_count("k", k, index.ntotal, f"{side} references")
        vectors = np.atleast_2d(vectors)
        if vectors.shape[1] != index.d:
            raise DataError(f"vectors of length {vectors.shape[1]} cannot be compared with references of {index.d}")
        results = by_piece(vectors, lambda piece: search(index, piece, k))
        similarity, place = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return Neighbours(similarity, np.array([*self.owners(side), -1])[place], self.rows(side))

    def rows(self, side: str) -> tuple[ReferenceRow, ...]:
        """The reference rows of a side, in the order in which they were given."""
        return tuple(row for row in self._rows if row.side == side)

    def overlap(self, row_ids: Iterable[str]) -> list[str]:
        """Those of `row_ids` that are references too: each once, in the order given.

        Such a row would be compared with itself, so it should not be judged by these references.
        """
        references = {row.row_id for row in self._rows}
        return list(dict.fromkeys(row_id for row_id in row_ids if row_id in references))

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        return read_vectors(self.bytes_of(VECTORS), self.layers, self._rows)

    @cached_property
    def _rows(self) -> tuple[ReferenceRow, ...]:
        return read_rows(self.bytes_of(ROWS), self.counts)

    @cached_property
    def _indexes(self) -> dict[str, faiss.IndexFlatIP]:
        return {}


def references(digest: str) -> ReferenceIndex:
    """The references with this digest in this user's store, opened once a process."""
    return ReferenceIndex.of(digest)


def check_count(name: str, count: int, available: int, unit: str) -> None:
    """Raise `OptionError` unless `count` is an integer from 1 to `available`; `unit` says what is counted."""
    if not is_whole(count) or not 1 <= count <= available:
        raise OptionError(
            f"`{name}={count!r}` does not fit {available} {unit}", fix=f"use a whole number from 1 to {available}"
        )
