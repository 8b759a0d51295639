"""The rows of a published folder, by the ids that their text gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import with_ignored
from hf_safefilter.decide.additions import ADDED
from hf_safefilter.errors import IntegrityError
from hf_safefilter.publish.provenance import Provenance

_ROWS = 4096


def mapping_of(provenance: Provenance) -> dict[str, str] | None:
    """Where things stand in a row, as `EmbedLayers` was told."""
    record: Mapping[str, Any] = next((step for step in provenance.steps if step["step"] == "EmbedLayers"), {})
    return with_ignored(dict(record.get("columns") or {}), list(record.get("ignore") or ()))


def kept_ids(folder: Path, provenance: Provenance) -> Iterator[tuple[str, str]]:
    """Split and row id of each kept row of the source."""
    return ((split, row_id(said)) for split, said in kept_conversations(folder, provenance))


def kept_conversations(folder: Path, provenance: Provenance) -> Iterator[tuple[str, Conversation]]:
    """Split and content of each kept row of the source."""
    return (key for key, added in _rows(folder, provenance) if not added)


def require_added(folder: Path, provenance: Provenance) -> int:
    """The number of rows that were added to those of the source.

    Raises:
        IntegrityError: They are not those that the record states.
    """
    rows = [key for key, added in _rows(folder, provenance) if added] if provenance.added is not None else []
    ids = [(split, row_id(said)) for split, said in rows]
    stated = provenance.added
    if stated is not None:
        elsewhere = {split for split, _ in ids} - {stated.split}
        if elsewhere or len(ids) != stated.rows or ids_digest([row for _, row in ids]) != stated.row_ids:
            raise IntegrityError("the rows that were added are not those that the record states")
    return len(ids)


def _rows(folder: Path, provenance: Provenance) -> Iterator[tuple[tuple[str, Conversation], bool]]:
    """Split and content of each row, and whether it was added."""
    columns = mapping_of(provenance)
    for path in sorted((folder / "data").glob("*.parquet")):
        split = path.name.rsplit("-", 3)[0]
        for batch in pq.ParquetFile(path).iter_batches(_ROWS):
            table = pa.Table.from_batches([batch])
            marks = [None] * table.num_rows if provenance.added is None else table[ADDED].to_pylist()
            own = table if provenance.added is None else table.drop_columns(ADDED)
            for conversation, mark in zip(conversations(Batch(own), columns), marks, strict=True):
                yield (split, conversation), mark is not None


def ids_digest(ids: Iterable[str]) -> str:
    """``sha256:`` and the digest of the ids in order, with a newline after each."""
    return "sha256:" + hashlib.sha256("".join(f"{row}\n" for row in ids).encode()).hexdigest()
