"""A part: some rows of one layer in an Arrow file that is named by a code of its bytes.

It is written whole or not at all (scratch file, fsync, rename), never changed afterwards, and read memory-mapped.
Two processes that write the same rows write the same file, so no lock is needed. The code is made with this user's key
(see `storage.signature`), so a file that somebody else has rewritten and named by its bytes is found out as well as one
that is damaged.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from hf_safefilter.data.ragged import Ragged, ragged_from_arrow, ragged_to_arrow
from hf_safefilter.data.spans import SPANS_TYPE, spans_from_arrow, spans_to_arrow
from hf_safefilter.errors import IntegrityError
from hf_safefilter.storage.atomic import atomic_bytes
from hf_safefilter.storage.signature import code_of

logger = logging.getLogger(__name__)

PART, DAMAGED = ".arrow", ".damaged"
_ID = 16  # bytes of a row_id
_MARK = b"hf_safefilter"


def packed(ids: Sequence[str]) -> np.ndarray:
    """Row ids of 32 hex digits as uint64 `(n, 2)`."""
    return np.frombuffer(bytes.fromhex("".join(ids)), np.uint64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of one layer, as a part stores them.

    Attributes:
        ids: Row ids as `packed` returns them, uint64 `(n, 2)`.
        spans: What was read of each row.
        vectors: A vector for each span, `(hidden_size,)`, float16 or, of references, float32; scores: `(1,)`.
        truncated: bool `(n,)`: whether the row was cut to fit.
        reasons: Strings `(n,)`: why the row could not be read; "" where it could.
    """

    ids: np.ndarray
    spans: Ragged
    vectors: Ragged
    truncated: np.ndarray
    reasons: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[StoredRows]) -> StoredRows:
        """All rows of `parts`, in order."""
        return cls(
            np.concatenate([part.ids for part in parts]),
            Ragged.joined([part.spans for part in parts]),
            Ragged.joined([part.vectors for part in parts]),
            np.concatenate([part.truncated for part in parts]),
            np.concatenate([part.reasons for part in parts]),
        )

    def take(self, rows: np.ndarray) -> StoredRows:
        """The rows at these places, int `(m,)`."""
        return StoredRows(
            self.ids[rows], self.spans.take(rows), self.vectors.take(rows), self.truncated[rows], self.reasons[rows]
        )


def write(folder: Path, mark: str, rows: StoredRows) -> Path:
    """Write `rows` into `folder`; returns the new part.

    Args:
        folder: Existing folder of the layer.
        mark: Space and layer as `mark_of` returns them; a reader must pass the same.
        rows: At least one row.

    Raises:
        OSError: The disk is full or broken, or the folder cannot be written; existing files are untouched.
    """
    ids = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(_ID), len(rows.ids), [None, pa.py_buffer(np.ascontiguousarray(rows.ids))]
    )
    columns = {
        "row_id": ids,
        "spans": spans_to_arrow(rows.spans),
        "vectors": ragged_to_arrow(rows.vectors),
        "truncated": pa.array(rows.truncated),
        "unscorable": pa.array(rows.reasons, pa.string()),
    }
    table = pa.table(columns)
    table = table.replace_schema_metadata({_MARK: mark})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    target = folder / f"{code_of(memoryview(content))}{PART}"
    atomic_bytes(target, memoryview(content))
    return target


def ids_of(path: Path, mark: str, width: int, dtype: type = np.float16) -> np.ndarray:
    """Ids of the rows in a part, uint64 `(n, 2)`: a hint only, because the code of the file is not verified.

    Raises:
        OSError: The file no longer exists, or cannot be opened at the moment.
        IntegrityError: The file is not a part of this space and layer.
    """
    return _parsed(_mapped(path), path, mark, width, dtype).ids.copy()


def open_part(path: Path, mark: str, width: int, dtype: type = np.float16) -> StoredRows:
    """The rows of a part, memory-mapped; its code is verified first.

    Raises:
        OSError: The file no longer exists, or cannot be opened at the moment.
        IntegrityError: The file was cut or altered, or is not a part of this space and layer.
    """
    return _parsed(_mapped(path, verify=True), path, mark, width, dtype)


def _mapped(path: Path, *, verify: bool = False) -> pa.Buffer:
    # An OSError, e.g. too many open files, does not mean that the part is damaged: it is passed on.
    if not path.stat().st_size:
        raise IntegrityError(f"{path} is empty")
    with pa.memory_map(str(path)) as stream:
        content = stream.read_buffer()
    if verify and not hmac.compare_digest(code_of(memoryview(content)), path.stem):
        raise IntegrityError(f"{path} is not what was written", found=f"{content.size} bytes of another code")
    return content


def verify(path: Path) -> None:
    """Raise `IntegrityError` unless the bytes of a part match the code in its name."""
    _mapped(path, verify=True)


def _parsed(content: pa.Buffer, path: Path, mark: str, width: int, dtype: type) -> StoredRows:
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(dtype), width))
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        recorded = (table.schema.metadata or {}).get(_MARK)
        types = table.schema.field("vectors").type, table.schema.field("spans").type
        if recorded != mark.encode() or types != (kind, SPANS_TYPE):
            raise IntegrityError(f"{path} is not a part of this space and layer", found=str(recorded))
        table.validate()
        ids = table["row_id"].chunk(0)
        return StoredRows(
            np.frombuffer(ids.buffers()[1], np.uint64, 2 * len(ids)).reshape(-1, 2),
            spans_from_arrow(table["spans"]),
            ragged_from_arrow(table["vectors"]),
            table["truncated"].to_numpy(),
            cast("np.ndarray", _LazyStrings(table["unscorable"].chunk(0))),  # indexing is all a reader does with it
        )
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise IntegrityError(f"{path} is not an Arrow file of rows", found=str(error)) from error


class _LazyStrings:
    """Strings that are created only for the rows asked for: nearly all of them are ""."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._array.take(pa.array(rows)).to_numpy(zero_copy_only=False)


def set_aside(path: Path, error: IntegrityError) -> None:
    """Rename a damaged part, so that it is not read again and its rows are computed anew."""
    with suppress(FileNotFoundError, PermissionError):  # another process was faster, or the store is read-only
        os.replace(path, path.with_suffix(DAMAGED))
    logger.warning("set aside a damaged part of the row cache; its rows are read again: %s", error)


def mark_of(digest: str, layer: object) -> str:
    """Space and layer in the form in which a part records them."""
    return json.dumps([digest, str(layer)])
