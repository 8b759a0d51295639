"""The data files of a published data set: parquet shards, the list of dropped rows, and their sizes for the card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.data.arrow_files import no_rows
from hf_safefilter.errors import IntegrityError, PublishError
from hf_safefilter.publish.drop_reasons import reasons_of, row_ids
from hf_safefilter.publish.stream_writer import write_stream

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

    from hf_safefilter.decide.additions import Additions
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.publish.provenance import Provenance

DROPPED = "dropped.parquet"
_SHARD_BYTES = 500 * 2**20
_SPLIT = re.compile(r"\w+(\.\w+)*")
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}\.parquet")


@dataclass(frozen=True, slots=True)
class SplitSize:
    """Size of a split.

    Attributes:
        rows: Number of rows.
        bytes: Bytes in memory.
        download: Bytes as parquet files.
    """

    rows: int
    bytes: int
    download: int


@dataclass(frozen=True, slots=True)
class Published:
    """Features and sizes of the published shards."""

    features: Features
    splits: dict[str, SplitSize]


def write_kept(
    folder: Path,
    kept: Mapping[str, Dataset | IterableDataset],
    provenance: Provenance,
    additions: Additions | None = None,
) -> None:
    """Write the rows of each split, with the user's own columns only, as ``data/<split>-<i>-of-<n>.parquet``.

    Args:
        folder: The folder.
        kept: Split name -> kept rows.
        provenance: The record of these rows.
        additions: Rows that are added to them.

    Raises:
        PublishError: No row was kept, a stream gave another number of rows, or the name of a split is not a file name.
    """
    (folder / "data").mkdir()
    written = streamed = 0
    if additions is not None:
        kept = additions.appended_to(kept)
    for split, part in kept.items():
        if not _SPLIT.fullmatch(split):
            raise PublishError(
                f"{split!r} cannot be the name of a split", fix="rename it with letters, digits, _ and ."
            )
        if not hasattr(part, "data"):
            streamed += write_stream(folder / "data", split, part, provenance.columns_added, _SHARD_BYTES)
            continue
        own = part.remove_columns([name for name in part.column_names if name in provenance.columns_added])
        shards = max(1, math.ceil(own.data.nbytes / _SHARD_BYTES))
        for number in range(shards):
            name = f"{split}-{number:05d}-of-{shards:05d}.parquet"
            own.shard(shards, number, contiguous=True).to_parquet(str(folder / "data" / name))
        written += len(own)
    if not written + streamed - (0 if additions is None else len(additions.rows)):
        raise PublishError("no row was kept: there is nothing to publish", fix="choose another threshold")
    if streamed and streamed != provenance.counts.kept:
        raise PublishError(
            f"the stream gave {streamed} rows to keep instead of {provenance.counts.kept}", fix="run it again"
        )


def write_dropped(
    folder: Path, dropped: Mapping[str, Dataset], is_safe: IsSafe, provenance: Provenance, include_text: bool
) -> None:
    """Write ``dropped.parquet``: split, row_id, every score, what decided and the reason; text with `include_text`."""
    from hf_safefilter.columns import ROW_ID, decided_column

    tables = []
    for split, part in dropped.items():
        decides = (is_safe.column, decided_column(is_safe.method))
        scores = [
            name
            for name in provenance.columns_added
            if (name.endswith("_score") or name in decides) and name in part.column_names
        ]
        own = [name for name in part.column_names if name not in provenance.columns_added] if include_text else []
        keys = {"split": [split] * len(part), ROW_ID: row_ids(part)}
        columns = {name: pa.array(values, pa.string()) for name, values in keys.items()}
        table = part.with_format("arrow")[:] if len(part) else no_rows(part.features.arrow_schema)
        columns |= {name: table[name] for name in scores}
        columns["reason"] = pa.array(reasons_of(part, is_safe), pa.string())
        columns |= {f"row_{name}": table[name] for name in own}
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables, promote_options="default"), folder / DROPPED)


def read_published(folder: Path) -> Published:
    """Features and sizes of the shards in the folder ``data/``.

    Raises:
        IntegrityError: There are no shards, or a file is not a shard.
    """
    from datasets import Features

    shards = sorted((folder / "data").glob("*.parquet")) if (folder / "data").is_dir() else []
    if not shards:
        raise IntegrityError(f"{folder} holds no data", fix="write it again: hf-safefilter card --help")
    sizes: dict[str, SplitSize] = {}
    features = None
    for shard in shards:
        match = _SHARD.fullmatch(shard.name)
        if match is None:
            raise IntegrityError(f"{shard.name} is not a shard of a split", fix="write the folder again")
        try:
            file = pq.ParquetFile(shard)
        except pa.ArrowInvalid as error:
            raise IntegrityError(f"{shard.name} is not parquet", fix="write the folder again") from error
        features = features or Features.from_arrow_schema(file.schema_arrow)
        size = sum(file.metadata.row_group(at).total_byte_size for at in range(file.metadata.num_row_groups))
        old = sizes.get(match["split"], SplitSize(0, 0, 0))
        sizes[match["split"]] = SplitSize(
            old.rows + file.metadata.num_rows, old.bytes + size, old.download + shard.stat().st_size
        )
    return Published(features, sizes)
