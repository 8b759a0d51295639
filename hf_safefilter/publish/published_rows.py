"""The rows of a published folder, by the ids that their text gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import with_ignored
from hf_safefilter.publish.provenance import Provenance

_ROWS = 4096


def mapping_of(provenance: Provenance) -> dict[str, str] | None:
    """Where things stand in a row, as `EmbedLayers` was told."""
    record: Mapping[str, Any] = next((step for step in provenance.steps if step["step"] == "EmbedLayers"), {})
    return with_ignored(dict(record.get("columns") or {}), list(record.get("ignore") or ()))


def kept_ids(folder: Path, provenance: Provenance) -> Iterator[tuple[str, str]]:
    """Split and row id of each kept row."""
    columns = mapping_of(provenance)
    for path in sorted((folder / "data").glob("*.parquet")):
        split = path.name.rsplit("-", 3)[0]
        for batch in pq.ParquetFile(path).iter_batches(_ROWS):
            for conversation in conversations(Batch(pa.Table.from_batches([batch])), columns):
                yield split, row_id(conversation)
