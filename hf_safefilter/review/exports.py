"""Reviewed rows in the formats of other tools: Argilla's records, and a table that Embedding Atlas draws."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.decide.decision_log import RowDecision
from hf_safefilter.review.row_view import plain_text
from hf_safefilter.storage.atomic import atomic_file, atomic_text

if TYPE_CHECKING:
    from hf_safefilter.review.review import Review

QUESTION = "decision"

_BATCH = 1024
_PEOPLE = uuid.UUID("5b0e7c1e-3a0c-5d53-9a5e-2f6f0b6f6f10")
"""Namespace of the ids that Argilla wants of people: a name gives the same one each time."""


def write_argilla(review: Review, path: Path, *, text: bool) -> None:
    """Write a record a row into one JSON array, as `from_json` of the records of an Argilla data set reads them.

    The decision at the threshold is a suggestion, and each person's decision a submitted response to the question
    `QUESTION`. Argilla takes a response only of a person whom it knows by the id `person_id`.

    Args:
        review: The review.
        path: The file; an earlier one is replaced.
        text: Whether to write what the rows say; they are fields of their row id alone otherwise.
    """
    lines = [json.dumps(record, ensure_ascii=True, allow_nan=False) for record in _records(review, text)]
    atomic_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def write_atlas(review: Review, path: Path, *, text: bool) -> None:
    """Write a table with ``x`` and ``y`` (null for a row without a vector), scores, threshold's decision and people's.

    Args:
        review: The review.
        path: The Parquet file; an earlier one is replaced.
        text: Whether to write what the rows say.
    """
    rows, found = review.rows, review.row_map
    points = np.full((len(rows), 2), np.nan, np.float32) if found is None else found.rows
    columns: dict[str, pa.Array] = {
        "row": pa.array(np.arange(len(rows)), pa.int64()),
        "row_id": pa.array(rows.ids, pa.string()),
        "x": pa.array(points[:, 0], from_pandas=True),
        "y": pa.array(points[:, 1], from_pandas=True),
        "score": pa.array(rows.scores, from_pandas=True),
        "at_threshold": pa.array(_at_threshold(review), pa.string()),
        QUESTION: pa.array([_summary(review.decisions_on(place)) for place in range(len(rows))], pa.string()),
    }
    for name, group in rows.groups.items():
        names = np.array([*group.names, None], object)
        columns[f"by {name}" if name in columns else name] = pa.array(names[group.codes], pa.string())
    if text:
        columns["text"] = pa.array(list(_texts(review)), pa.string())
    with atomic_file(path) as scratch:
        pq.write_table(pa.table(columns), scratch)


def _records(review: Review, text: bool) -> Iterator[dict[str, Any]]:
    rows = review.rows
    texts = _texts(review) if text else iter([""] * len(rows))
    for place, (decided, said) in enumerate(zip(_at_threshold(review), texts, strict=True)):
        score = float(rows.scores[place])
        kinds = {name: group.names[group.codes[place]] for name, group in rows.groups.items()
                 if group.codes[place] < len(group.names)}  # fmt: skip
        yield {
            "id": f"{place}-{rows.ids[place]}",
            "fields": {"row_id": rows.ids[place]} | ({"text": said} if text else {}),
            "metadata": kinds | {"row_id": rows.ids[place], "column": rows.column}
            | ({"score": score} if np.isfinite(score) else {}),
            "suggestions": {QUESTION: {"value": decided, "score": None, "agent": rows.column}},
            "responses": {QUESTION: [_response(decision) for decision in review.decisions_on(place)]},
            "vectors": {},
        }  # fmt: skip


def _response(decision: RowDecision) -> dict[str, Any]:
    return {"value": decision.decision, "user_id": person_id(decision.who), "status": "submitted"}


def person_id(name: str) -> str:
    """The id that a person has in Argilla's records."""
    return str(uuid.uuid5(_PEOPLE, name))


def _at_threshold(review: Review) -> list[str]:
    scores = review.rows.scores
    return ["keep" if np.isfinite(score) and score < review.is_safe.threshold else "drop" for score in scores.tolist()]


def _summary(decisions: list[RowDecision]) -> str | None:
    """What people decided, each word once; None for nothing."""
    return " and ".join(sorted({decision.decision for decision in decisions})) or None


def _texts(review: Review) -> Iterator[str]:
    for part in review.rows.parts:
        names = [name for name in part.column_names if not name.startswith(EMBEDDING_PREFIX)]
        said = part.select_columns(names)
        for start in range(0, len(said), _BATCH):
            yield from plain_text(said.select(range(start, min(start + _BATCH, len(said)))), review.saved.mapping)
