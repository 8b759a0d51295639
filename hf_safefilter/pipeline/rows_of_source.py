"""Whether the rows of a published set are those of its source: kept as they were, changed as stated, or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.actions import masked
from hf_safefilter.decide.decision_log import MASK
from hf_safefilter.errors import IntegrityError
from hf_safefilter.publish.data_files import DROPPED
from hf_safefilter.publish.drop_reasons import by_split
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.published_rows import ids_digest, kept_conversations, mapping_of
from hf_safefilter.publish.review_facts import read_rulings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.row_decisions import RowDecisions

_ROWS = 4096
_CHANGED = {"switch": "have their sides switched", "mask": "have turns that are not trained on"}


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the source: its id, that of the row it is kept as, and what no action changes of it."""

    id: str
    kept_as: str
    core: str


def require_rows_of_source(folder: Path, provenance: Provenance, source: Dataset | DatasetDict) -> str:
    """Raise unless kept and dropped rows together are those of the source; else a sentence that says so.

    Rows of which people have masked turns must be masked in just these. Where the score has switched or masked rows,
    they must say what the rows of the source say, but for the order of the sides, or for which turns are trained on.

    Raises:
        IntegrityError: The source has other rows than the record states, or a row is invented, missing or in both.
    """
    action, columns = provenance.selection.action, mapping_of(provenance)
    rulings = read_rulings(folder, provenance)
    dropped = pq.read_table(folder / DROPPED, columns=["split", "row_id"]).to_pylist()
    held: dict[str, Counter[str]] = {}
    ids: dict[str, Counter[str]] = {}
    for split, conversation in kept_conversations(folder, provenance):
        held.setdefault(split, Counter())[_name(conversation, action)] += 1
        ids.setdefault(split, Counter())[row_id(conversation)] += 1
    total = changed = 0
    for split, part in by_split(source).items():
        rows = list(_rows(part, columns, rulings, action))
        stated = provenance.source.splits.get(split)
        if stated is None or ids_digest([row.id for row in rows]) != stated.row_ids:
            raise IntegrityError(f"the split {split} of the source has other rows than the record states")
        gone = Counter(row["row_id"] for row in dropped if row["split"] == split)
        _require_all(split, rows, held.get(split, Counter()), gone, action)
        total += len(rows)
        changed += (ids.get(split, Counter()) - Counter(row.id for row in rows)).total()
    sentence = f"{total} rows of the source, none invented, missing or in both"
    if not changed:
        return sentence
    return f"{sentence}; {changed} of those kept {_CHANGED.get(action, _CHANGED['mask'])}"


def _require_all(split: str, rows: list[_Row], held: Counter[str], gone: Counter[str], action: str) -> None:
    by_id = {row.id: row for row in rows}
    unknown = Counter(dict.fromkeys(gone.keys() - by_id.keys(), 1))
    names = Counter(row.kept_as if action == "drop" else row.core for row in rows)
    names_gone = Counter[str]()
    for id_, count in gone.items():
        if (row := by_id.get(id_)) is not None:
            names_gone[row.kept_as if action == "drop" else row.core] += count
    both = held.keys() & names_gone.keys() if action == "drop" else ()
    for fault, wrong in (
        ("invented", unknown + ((held + names_gone) - names)),
        ("missing", names - (held + names_gone)),
        ("kept and dropped", Counter(both)),
    ):
        if wrong:
            raise IntegrityError(f"{wrong.total()} rows of {split} are {fault}", found=min(wrong))


def _rows(
    part: Dataset, columns: Mapping[str, str] | None, rulings: RowDecisions | None, action: str
) -> Iterator[_Row]:
    text = part.remove_columns([name for name in part.column_names if name.startswith(EMBEDDING_PREFIX)])
    for table in text.with_format("arrow").iter(_ROWS):
        said = conversations(Batch(table), columns)
        ids = list(map(row_id, said))
        as_ruled = ids if rulings is None or action != "drop" else _masked_ids(table, ids, rulings, columns)
        cores = ids if action == "drop" else [_name(conversation, action) for conversation in said]
        yield from map(_Row, ids, as_ruled, cores)


def _masked_ids(table: pa.Table, ids: list[str], rulings: RowDecisions, columns: Mapping[str, str] | None) -> list[str]:
    """The ids of the rows as people have masked them; of a row of which nothing is left to train on, its own."""
    ruled = np.flatnonzero(rulings.of_rows(ids) == MASK).tolist()
    if not ruled:
        return ids
    changed, left = masked(table.take(ruled), [rulings.masked_turns(ids[row]) for row in ruled], columns)
    found = list(ids)
    for row, conversation, some in zip(ruled, conversations(Batch(changed), columns), left, strict=True):
        found[row] = row_id(conversation) if some else ids[row]
    return found


def _name(conversation: Conversation, action: str) -> str:
    """The id of what an action cannot change: of a switch the sides in a fixed order, of a mask all turns trained."""
    if action == "switch" and conversation.rejected is not None:
        first, second = sorted((conversation.messages, conversation.rejected), key=repr)
        return row_id(replace(conversation, messages=first, rejected=second))
    if action == "mask":
        turns = tuple(replace(said, trained=True) for said in conversation.messages)
        return row_id(replace(conversation, messages=turns))
    return row_id(conversation)
