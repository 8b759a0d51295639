"""Reading both sides of a reference set, and refusing sets that cannot separate rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.vectors import lengths, unit
from hf_safefilter.errors import DataError
from hf_safefilter.references.files import Side

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.cache import RowVectors
    from hf_safefilter.data.conversations import Conversation
    from hf_safefilter.embed import EmbedLayers

logger = logging.getLogger(__name__)

_SMALLEST_DIRECTION = 1e-6
_SHOWN = 5
_AUDIT = "hf-safefilter reference audit --unsafe FILE --safe FILE"


def read_sides(
    rows_by_side: Mapping[str, Dataset | Iterable[Mapping[str, Any]]], embed: EmbedLayers
) -> dict[str, Side]:
    """Embed the rows of both sides ("unsafe" and "safe") and check them.

    Args:
        rows_by_side: Side -> data set or iterable of rows; "benign" rows are added to the safe side.
        embed: The step that reads the rows.

    Raises:
        DataError: See `ReferenceIndex.build`.
    """
    read = {side: _read(side, rows, embed) for side, rows in rows_by_side.items()}
    unsafe, safe = read["unsafe"], read["safe"]
    if "benign" in read:
        _refuse_shared(unsafe.ids, read["benign"].ids, "benign")
        safe = _with_benign(safe, read["benign"])
    _refuse_shared(unsafe.ids, safe.ids)
    for layer in embed.layers:  # at further positions, such as the end of the prompt, both sides may be alike
        refuse_zero_direction(layer, unsafe.vectors[layer], safe.vectors[layer])
    return {"unsafe": unsafe, "safe": safe}


def _with_benign(safe: Side, benign: Side) -> Side:
    return Side(
        safe.conversations + benign.conversations,
        safe.ids + benign.ids,
        safe.spans + benign.spans,
        safe.truncated + benign.truncated,
        len(benign.ids),
        {layer: np.concatenate([values, benign.vectors[layer]]) for layer, values in safe.vectors.items()},
    )


def _read(side: str, rows: Dataset | Iterable[Mapping[str, Any]], embed: EmbedLayers) -> Side:
    rows = rows if isinstance(rows, Sized) else list(rows)
    if not len(rows):
        raise DataError(
            f"there are no {side} reference rows",
            fix=f"pass at least one row for each side, and see what is needed: {_AUDIT}",
        )
    read, conversations = embed.vectors(rows)
    _refuse_pairs(side, conversations)
    _refuse_unreadable(side, read)
    truncated = int(read.truncated.sum())
    if truncated:
        logger.warning("%d of %d %s reference rows are too long and were cut", truncated, len(conversations), side)
    ids = [row_id(conversation) for conversation in conversations]
    if len(ids) > 1 and len(set(ids)) == 1:
        raise DataError(
            f"all {len(ids)} {side} reference rows are the same row",
            fix=f"pass different rows, and see what is needed: {_AUDIT}",
        )
    by_layer = {layer: np.ascontiguousarray(values, dtype=np.float32) for layer, values in read.vectors.items()}
    return Side(list(conversations), ids, np.diff(read.offsets).tolist(), truncated, 0, by_layer)


def _refuse_pairs(side: str, conversations: Sequence[Conversation]) -> None:
    pairs = sum(conversation.rejected is not None for conversation in conversations)
    if pairs:
        raise DataError(
            f"{pairs} {side} reference rows are preference pairs, and only one side of each can be a reference",
            fix='name it: `columns={"prompt": "prompt", "response": "chosen", "ignore": "rejected"}`',
        )


def _refuse_unreadable(side: str, read: RowVectors) -> None:
    faults = {position: reason for position, reason in enumerate(read.reasons) if reason}
    for layer in read.vectors:
        vectors = read.of(layer)
        for position in np.unique(vectors.owners[np.isnan(lengths(vectors.values))]).tolist():
            faults.setdefault(position, f"zero or not finite at layer {layer}")
    if faults:
        raise DataError(
            f"{len(faults)} of {len(read.reasons)} {side} reference rows cannot be read",
            found=_shortened([f"row {position}: {reason}" for position, reason in sorted(faults.items())]),
            fix="correct or remove these rows (counted from 0)",
        )


def _refuse_shared(unsafe: Sequence[str], safe: Sequence[str], other: str = "safe") -> None:
    both = set(unsafe) & set(safe)
    if both and both == set(unsafe) | set(safe):
        raise DataError(
            f"the unsafe and the {other} references are the same rows", fix=f"check which file is which: {_AUDIT}"
        )
    if both:
        raise DataError(
            f"{len(both)} rows are on both sides of the references",
            found=_shortened([f"unsafe row {index}" for index, row_id in enumerate(unsafe) if row_id in both]),
            fix=f"remove these rows from one side (counted from 0), and look for more: {_AUDIT}",
        )


def refuse_zero_direction(layer: Layer, unsafe: np.ndarray, safe: np.ndarray) -> None:
    """Raise `DataError` if the mean unit vectors of both sides are the same."""
    gap = np.linalg.norm(unit(unsafe.astype(np.float64)).mean(0) - unit(safe.astype(np.float64)).mean(0))
    if gap < _SMALLEST_DIRECTION:
        raise DataError(
            f"at layer {layer} the unsafe and the safe references point the same way and separate no rows",
            found=f"difference of the mean unit vectors: {gap:.1e}",
            fix="leave this layer out (at layer 0 a last token is the same in every row), or use other rows",
        )


def _shortened(parts: Sequence[str]) -> str:
    return "; ".join(parts[:_SHOWN]) + ("; ..." if len(parts) > _SHOWN else "")
