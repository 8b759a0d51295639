"""The splits of a data set, the ids of their rows, and why rows were dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import ROW_ID, UNSCORABLE, decided_column, reason_column
from hf_safefilter.data.batch import Batch

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe

REACHED = "score at or above the threshold"
NO_NUMBER = "score is not a number"
BY_PEOPLE = "decided by a person, against the score"


def reasons_of(part: Dataset, is_safe: IsSafe) -> list[str]:
    """Why each row was dropped; "" for a row that was kept."""
    if not len(part):
        return []
    own = reason_column(is_safe.method)
    decided = decided_column(is_safe.method)
    columns = [name for name in (decided, own, UNSCORABLE) if name in part.column_names]
    columns = list(dict.fromkeys([*is_safe.read_columns(part.column_names), *columns]))
    table = part.select_columns(columns).with_format("arrow")[:]
    view = Batch(table)
    # the reason of a method that reads the text itself comes before that of the embedder
    column = next((name for name in (own, UNSCORABLE) if name in columns), None)
    unread = view.cells(column) if column else [""] * view.n
    finite = np.isfinite(view.numbers(is_safe.column))
    overruled = is_safe.mask_by_score(view).tolist()  # such a row is dropped by people alone
    reached = [_reached_by(by) for by in view.cells(decided)] if decided in columns else [REACHED] * view.n
    reasons = [
        f"unscorable: {reason}" if reason else sentence if scored else NO_NUMBER
        for reason, scored, sentence in zip(unread, finite.tolist(), reached, strict=True)
    ]
    return [
        "" if kept else BY_PEOPLE if by_people else reason
        for kept, by_people, reason in zip(is_safe.kept(table).tolist(), overruled, reasons, strict=True)
    ]


def _reached_by(method: str) -> str:
    """The reason where one of several methods decided: which danger took the row."""
    from hf_safefilter.scores import METHODS
    from hf_safefilter.scores import method as method_class

    return f"{REACHED}: {method_class(method).DANGER} ({method})" if method in METHODS else REACHED


def row_ids(part: Dataset, columns: Mapping[str, str] | None = None) -> list[str]:
    """Ids of the rows: the column `row_id` if it exists, else computed from the text."""
    from hf_safefilter.data.conversations import as_conversations
    from hf_safefilter.data.row_ids import row_id

    if ROW_ID in part.column_names:
        return part.with_format("arrow")[:][ROW_ID].to_pylist() if len(part) else []
    return [row_id(conversation) for conversation in as_conversations(part, columns)]


def by_split(ds: Dataset | DatasetDict) -> dict[str, Any]:
    """Split name -> rows; a data set without a split name is called train, as on the Hub.

    A part of a split (``train[:40]``) is published under the split's own name, several splits joined under train.
    """
    if isinstance(ds, Mapping):
        return dict(ds)
    name = str(ds.split or "train")
    return {"train" if "+" in name else name.partition("[")[0]: ds}
