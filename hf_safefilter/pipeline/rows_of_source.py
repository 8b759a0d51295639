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
from hf_safefilter.data.conversations import Conversation, answers_in, conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.actions import masked
from hf_safefilter.decide.decision_log import DROP, KEEP, MASK
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
class _Changeable:
    """What of a row an action can change, and what not.

    Attributes:
        same: Id of what stays the same: the sides of a pair in a fixed order, or all turns as if they were trained on.
        trained: Places of the answers that are trained on.
    """

    same: str
    trained: frozenset[int]

    @classmethod
    def of(cls, said: Conversation, action: str) -> _Changeable:
        if action == "switch" and said.rejected is not None:
            first, second = sorted((said.messages, said.rejected), key=repr)
            said = replace(said, messages=first, rejected=second)
        trained = frozenset(answers_in(said.messages))
        if action == "mask":
            said = replace(said, messages=tuple(replace(turn, trained=True) for turn in said.messages))
        return cls(row_id(said), trained)

    def may_be(self, source: _Changeable, action: str) -> bool:
        """Whether a kept row may come from a row of the source by this action."""
        if self.same != source.same or action == "drop":
            return False
        return action == "switch" or (bool(self.trained) and self.trained < source.trained)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the source: its id, what people ruled on it, the id it is masked as ("": it goes), what may change."""

    id: str
    ruling: str
    masked_as: str
    changeable: _Changeable | None


def require_rows_of_source(folder: Path, provenance: Provenance, source: Dataset | DatasetDict) -> str:
    """Raise unless kept and dropped rows together are those of the source; else a sentence that says so.

    Rows on which people have decided are kept, dropped, or masked in just the turns that they named. Any other row is
    kept as it is, or dropped; where the score switches or masks, its sides may be exchanged, or some of its trained
    answers no longer trained on. As many rows are changed as the record states.

    Raises:
        IntegrityError: The source has other rows or splits than the record states, or a row is invented, missing,
            changed otherwise, or kept and dropped.
    """
    action, columns = provenance.selection.action, mapping_of(provenance)
    rulings = read_rulings(folder, provenance)
    parts = by_split(source)
    held: dict[str, Counter[str]] = {}
    others: dict[str, _Changeable] = {}
    for split, conversation in kept_conversations(folder, provenance):
        name = row_id(conversation)
        held.setdefault(split, Counter())[name] += 1
        if action != "drop" and name not in others:
            others[name] = _Changeable.of(conversation, action)
    gone: dict[str, Counter[str]] = {}
    for row in pq.read_table(folder / DROPPED, columns=["split", "row_id"]).to_pylist():
        gone.setdefault(row["split"], Counter())[row["row_id"]] += 1
    if strange := (held.keys() | gone.keys() | provenance.source.splits.keys()) ^ parts.keys():
        raise IntegrityError("the source has other splits than the published set", found=", ".join(sorted(strange)))
    total = changed = 0
    for split, part in parts.items():
        rows = list(_rows(part, columns, rulings, action))
        if ids_digest([row.id for row in rows]) != provenance.source.splits[split].row_ids:
            raise IntegrityError(f"the split {split} of the source has other rows than the record states")
        total += len(rows)
        changed += _match(split, rows, held.get(split, Counter()), gone.get(split, Counter()), others, action)
    if changed != provenance.counts.changed:
        raise IntegrityError(f"{changed} kept rows were changed, and {provenance.counts.changed} are stated")
    sentence = f"{total} rows of the source, none invented, missing or in both"
    return f"{sentence}; {changed} of those kept {_CHANGED.get(action, _CHANGED['mask'])}" if changed else sentence


def _match(
    split: str,
    rows: list[_Row],
    held: Counter[str],
    gone: Counter[str],
    others: Mapping[str, _Changeable],
    action: str,
) -> int:
    """Find each row of the source among those kept or dropped, once; gives the number of changed ones."""
    held, gone = held.copy(), gone.copy()
    free = list[_Row]()
    changed = 0
    for row in rows:
        if not row.ruling:
            free.append(row)
        elif row.ruling == DROP or (row.ruling == MASK and not row.masked_as):
            _take(gone, row.id, f"a row of {split} that people decided to drop was not dropped")
        else:
            name = row.masked_as if row.ruling == MASK else row.id
            _take(held, name, f"a row of {split} is not kept as people decided")
            changed += name != row.id
    left = Counter(row.id for row in free)
    if invented := gone - left:
        raise IntegrityError(f"{invented.total()} dropped rows of {split} are invented", found=min(invented))
    left -= gone
    same = left & held
    if both := same.keys() & gone.keys():
        raise IntegrityError(f"{len(both)} rows of {split} are kept and dropped", found=min(both))
    return changed + _match_changed(split, free, left - same, held - same, others, action)


def _match_changed(
    split: str,
    free: list[_Row],
    left: Counter[str],
    held: Counter[str],
    others: Mapping[str, _Changeable],
    action: str,
) -> int:
    """Find a row of the source for each kept row that is none of them as it is; gives the number of these."""
    known = {row.id: row.changeable for row in free}
    left, changed = left.copy(), 0
    by_same: dict[str, list[str]] = {}
    for name in left.elements():
        if (of_source := known[name]) is not None:
            by_same.setdefault(of_source.same, []).append(name)
    for name in sorted(held.elements(), key=lambda name: -len(others[name].trained) if name in others else 0):
        kept = others.get(name)
        sources = by_same.get(kept.same, []) if kept is not None else []
        fitting = [one for one in sources if kept is not None and kept.may_be(_known(known, one), action)]
        if kept is None or not fitting:
            raise IntegrityError(f"a kept row of {split} is invented, or changed otherwise than stated", found=name)
        chosen = min(fitting, key=lambda one: len(_known(known, one).trained))
        sources.remove(chosen)
        left[chosen] -= 1
        changed += 1
    if missing := +left:
        raise IntegrityError(f"{missing.total()} rows of {split} are missing", found=min(missing))
    return changed


def _known(known: Mapping[str, _Changeable | None], name: str) -> _Changeable:
    found = known[name]
    assert found is not None  # of a set whose rows may change
    return found


def _take(counts: Counter[str], name: str, fault: str) -> None:
    if not counts[name]:
        raise IntegrityError(fault, found=name)
    counts[name] -= 1


def _rows(
    part: Dataset, columns: Mapping[str, str] | None, rulings: RowDecisions | None, action: str
) -> Iterator[_Row]:
    text = part.remove_columns([name for name in part.column_names if name.startswith(EMBEDDING_PREFIX)])
    for table in text.with_format("arrow").iter(_ROWS):
        said = conversations(Batch(table), columns)
        ids = list(map(row_id, said))
        ruled = [""] * len(ids) if rulings is None else rulings.of_rows(ids).tolist()
        masked_as = dict.fromkeys(range(len(ids)), "")
        if rulings is not None and MASK in ruled:
            masked_as |= _masked_ids(table, ids, rulings, columns)
        for place, (name, word, conversation) in enumerate(zip(ids, ruled, said, strict=True)):
            changeable = None if action == "drop" or word else _Changeable.of(conversation, action)
            yield _Row(name, word if word in (KEEP, DROP, MASK) else "", masked_as[place], changeable)


def _masked_ids(
    table: pa.Table, ids: list[str], rulings: RowDecisions, columns: Mapping[str, str] | None
) -> dict[int, str]:
    """Place -> the id of the row as people have masked it; "" where nothing is left to train on."""
    ruled = np.flatnonzero(rulings.of_rows(ids) == MASK).tolist()
    changed, left = masked(table.take(ruled), [rulings.masked_turns(ids[row]) for row in ruled], columns)
    rows = zip(ruled, conversations(Batch(changed), columns), left, strict=True)
    return {row: row_id(conversation) if some else "" for row, conversation, some in rows}
