"""Which rows are kept: the predicate, and the streamed split of a data set by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from hf_safefilter.checks import is_finite, require_choice
from hf_safefilter.columns import EMBEDDING_PREFIX, PAIR_SHIFT, ROW_ID, SCORE_SUFFIX, SPANS, span_scores_column
from hf_safefilter.data.arrow_files import arrow_file, new_file, no_rows
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.splits import joined, splits_of
from hf_safefilter.decide.actions import Action, masked, switched
from hf_safefilter.decide.decision_log import DROP, KEEP, MASK
from hf_safefilter.decide.row_decisions import RowDecisions
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ROWS = 8192


@dataclass(frozen=True, slots=True)
class IsSafe:
    """Keeps a row whose score is finite and below the threshold; a row that could not be scored is dropped.

    It can be passed to `Dataset.filter`, batched or not, `DatasetDict.filter` and `IterableDataset.filter`.

    Args:
        column: Name of a score column; higher = more dangerous.
        threshold: A finite number; rows that score it or more are dangerous.
        rule: How the threshold was found, in words; a `Threshold` states it itself.
        action: What becomes of dangerous rows: they are dropped, a preference pair is switched (see
            `decide.actions`), or answers are masked. All but "drop" change rows: use `split` in place of a filter.
        columns: ``{"messages": ...}``, or ``{"chosen": ..., "rejected": ...}``, for rows of no known shape that are
            changed.
        decisions: What people have decided on single rows, which goes before the score: a `RowDecisions`, or the path
            of a log. If turns are masked by it, use `split` in place of a filter.

    Raises:
        OptionError: The threshold is not a finite number, the action is not known, or masks do not go with it.
    """

    column: str
    threshold: float
    rule: str = ""
    action: Action = "drop"
    columns: Mapping[str, str] | Sequence[tuple[str, str]] | None = None
    decisions: RowDecisions | str | Path | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not is_finite(self.threshold):
            raise OptionError(
                f"`threshold={self.threshold!r}` is not a finite number", fix="find one with threshold_for(...)"
            )
        require_choice("action", self.action, get_args(Action))
        set_field = object.__setattr__
        rule = getattr(self.threshold, "rule", f"score below {float(self.threshold):.6g}")
        set_field(self, "rule", self.rule or rule)
        set_field(self, "threshold", float(self.threshold))
        set_field(self, "columns", tuple(sorted(dict(self.columns).items())) if self.columns else None)
        if isinstance(self.decisions, (str, Path)):
            set_field(self, "decisions", RowDecisions.read(self.decisions))
        if self.action == "switch" and self._masks_turns:
            raise OptionError("rows whose sides are switched have no turns to mask", fix="decide keep or drop instead")

    def __call__(self, batch: Any) -> Any:
        """True for the rows to keep: a bool for a single row, bool (n,) for a batch."""
        if self.changes_rows:
            does = "mask" if self.action == "drop" else self.action
            raise OptionError(
                f"a filter cannot {does} rows, it drops them", fix="use split(ds, is_safe), or `action='drop'`"
            )
        view = Batch(batch)
        mask = self.mask(view)
        return bool(mask[0]) if view.is_row else mask

    @property
    def changes_rows(self) -> bool:
        """Whether some rows are kept in another form than the one they have."""
        return self.action != "drop" or self._masks_turns

    @property
    def decisions_digest(self) -> str | None:
        """Digest of what people decided on single rows; None if nobody has."""
        return self.decisions.sha256 if isinstance(self.decisions, RowDecisions) else None

    @property
    def _masks_turns(self) -> bool:
        return isinstance(self.decisions, RowDecisions) and self.decisions.masks_turns

    def mask(self, batch: Batch) -> np.ndarray:
        """bool (n,): True for the rows that are kept as they are."""
        ruled = self.rulings(batch)
        return np.where(ruled == "", self.mask_by_score(batch), ruled == KEEP)

    def mask_by_score(self, batch: Batch) -> np.ndarray:
        """bool (n,): True for the rows that would be kept as they are if nobody had decided on any."""
        batch.require(self.column, f"score the rows first: ds.map(...) with the step that adds {self.column!r}")
        scores = batch.numbers(self.column)
        return np.isfinite(scores) & (scores < self.threshold)

    def rulings(self, batch: Batch) -> np.ndarray:
        """What people decided on each row, str (n,): "keep", "drop", "mask", or "" where the score decides."""
        if not isinstance(self.decisions, RowDecisions):
            return np.full(batch.n, "", "U4")
        return self.decisions.of_rows(self._ids(batch))

    def _ids(self, batch: Batch) -> list[str]:
        """Ids of the rows: of their column, else made from their text."""
        if ROW_ID in batch.names:
            return batch.cells(ROW_ID)
        return [row_id(conversation) for conversation in conversations(batch, dict(self.columns or ()))]

    def divide(self, table: pa.Table, scored: pa.Table | None = None) -> tuple[pa.Table, np.ndarray]:
        """The rows as they are to be kept, and which of them are, bool (n,).

        Args:
            table: The rows.
            scored: Their score columns, and their ids, where `table` does not have them.
        """
        batch = Batch(table if scored is None else scored)
        safe = self.mask(batch)
        if not self.changes_rows:
            return table, safe
        ruled = self.rulings(batch)
        dangerous = (ruled == "") & ~safe & np.isfinite(batch.numbers(self.column))
        if self.action == "switch":
            return switched(table, dangerous, dict(self.columns or ())), safe | dangerous
        flagged = self._flagged_turns(batch, dangerous, ruled)
        changed, left = masked(table, flagged, dict(self.columns or ()))
        return changed, safe | (np.array(list(map(bool, flagged)), bool) & left)

    def _flagged_turns(self, batch: Batch, dangerous: np.ndarray, ruled: np.ndarray) -> list[set[int]]:
        """The turns of each row that are masked: by the scores of its spans where it is `dangerous`, or by people."""
        flagged: list[set[int]] = [set() for _ in range(batch.n)]
        if self.action == "mask":
            for row, spans in enumerate(self.dangerous_spans(batch)):
                flagged[row] = set(spans["turn"].tolist()) if dangerous[row] else set()
        if isinstance(self.decisions, RowDecisions) and self._masks_turns:
            ids = self._ids(batch)
            for row in np.flatnonzero(ruled == MASK).tolist():
                flagged[row] = self.decisions.masked_turns(ids[row])
        return flagged

    def kept(self, table: pa.Table) -> np.ndarray:
        """bool (n,): which rows are kept, as they are or changed."""
        if self.action == "switch":
            batch = Batch(table)
            ruled = self.rulings(batch)
            return np.where(ruled == "", np.isfinite(batch.numbers(self.column)), ruled == KEEP)
        return self.divide(table)[1]

    def read_columns(self, names: Sequence[str]) -> list[str]:
        """The columns, of those of a data set, that the decision depends on; what rows say if they are changed."""
        by_people = isinstance(self.decisions, RowDecisions)
        if self.changes_rows or (by_people and ROW_ID not in names):
            return [name for name in names if not name.startswith(EMBEDDING_PREFIX)]
        return [name for name in names if name == self.column or (by_people and name == ROW_ID)]

    @property
    def method(self) -> str:
        """Name of the method whose column decides."""
        return self.column.removesuffix(PAIR_SHIFT).removesuffix(SCORE_SUFFIX)

    def dangerous_spans(self, batch: Batch) -> list[np.ndarray]:
        """The spans of each row whose score reaches the threshold, `SPAN`; of preference pairs, of the chosen side.

        Raises:
            MissingError: The rows have no scores of spans.
        """
        name = span_scores_column(self.method)
        for column in (name, SPANS):
            batch.require(column, "score the rows by a method that reads spans")
        spans = batch.spans()
        assert spans is not None  # required above
        dangerous = spans.where((batch.ragged(name).values >= self.threshold) & ~spans.values["rejected"])
        return [dangerous.row(index) for index in range(len(dangerous))]

    def masked_spans(self, batch: Batch) -> list[np.ndarray]:
        """The spans of each row that are not to be learned, `SPAN`: the dangerous ones, or what people decided.

        Raises:
            MissingError: The rows have no scores of spans.
        """
        masked = self.dangerous_spans(batch)
        spans, ruled = batch.spans(), self.rulings(batch)
        assert spans is not None  # `dangerous_spans` requires them
        if not isinstance(self.decisions, RowDecisions):
            return masked
        ids = self._ids(batch)
        for row in np.flatnonzero(ruled != "").tolist():
            own = spans.row(row)
            turns = sorted(self.decisions.masked_turns(ids[row]))
            masked[row] = own if ruled[row] == DROP else own[np.isin(own["turn"], turns)]
        return masked

    def to_json(self) -> dict[str, Any]:
        """Plain values from which `from_json` makes the same decision."""
        decision: dict[str, Any] = {
            "column": self.column,
            "threshold": self.threshold.hex(),
            "rule": self.rule,
            "action": self.action,
        }
        if self.columns:
            decision["columns"] = dict(self.columns)
        if isinstance(self.decisions, RowDecisions):
            decision["decisions"] = self.decisions.to_json()
        return decision

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> IsSafe:
        """See `to_json`."""
        threshold = float.fromhex(record["threshold"])
        decisions = None if record.get("decisions") is None else RowDecisions.from_json(record["decisions"])
        action = record.get("action", "drop")
        return cls(record["column"], threshold, record["rule"], action, record.get("columns"), decisions)


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of a data set: every row is in one of them, in the order of the data set."""

    kept: Dataset | DatasetDict
    dropped: Dataset | DatasetDict


def split(ds: Dataset | DatasetDict, is_safe: IsSafe) -> Split:
    """Split rows by a predicate into two flat data sets, streaming; `ds` is not changed.

    Unlike `filter`, which stores indices into the rows of `ds`, the parts are written to disk once and then read at
    full speed, until this process ends; the same split of the same object is not written twice. Rows that the decision
    switches or masks are among the kept ones, as they are to be trained on.

    Raises:
        MissingError: The score column is missing.
    """
    parts = {name: _parts(part, is_safe) for name, part in splits_of(ds).items()}
    return Split(
        joined({name: kept for name, (kept, _) in parts.items()}),
        joined({name: dropped for name, (_, dropped) in parts.items()}),
    )


_known: WeakKeyDictionary[Dataset, dict[IsSafe, tuple[Dataset, Dataset]]] = WeakKeyDictionary()


def _parts(ds: Dataset, is_safe: IsSafe) -> tuple[Dataset, Dataset]:
    """Kept and dropped rows, written in one pass unless this process has written them before."""
    # by the object: its fingerprint may come with the rows, and be that of others
    known = _known.setdefault(ds, {})
    if is_safe not in known:
        known[is_safe] = _written(ds, is_safe)
    return known[is_safe]


def _written(ds: Dataset, is_safe: IsSafe) -> tuple[Dataset, Dataset]:
    Batch({name: [] for name in ds.column_names}).require(is_safe.column, "score the rows first")
    schema = ds.features.arrow_schema
    schemas = {True: is_safe.divide(no_rows(schema))[0].schema, False: schema}
    paths = {keep: new_file("kept" if keep else "dropped") for keep in (True, False)}
    with ExitStack() as files:
        writers = {keep: files.enter_context(arrow_file(path, schemas[keep])) for keep, path in paths.items()}
        for table in _tables(ds):
            changed, mask = is_safe.divide(table)
            for keep, write in writers.items():
                write((changed if keep else table).filter(pa.array(mask == keep)))
    kept, dropped = (_open(paths[keep], ds, schemas[keep]) for keep in (True, False))
    return kept, dropped


def _tables(ds: Dataset) -> Iterable[pa.Table]:
    if ds._indices is None:  # rows in the order of the files: Arrow's own batches, without a copy
        yield from (pa.Table.from_batches([batch]) for batch in ds.data.table.to_batches(_ROWS))
    else:
        yield from ds.with_format("arrow").iter(_ROWS)


def _open(path: Path, like: Dataset, schema: pa.Schema) -> Dataset:
    from datasets import Dataset, Features

    info = like.info.copy()
    if schema != like.features.arrow_schema:
        info.features = Features.from_arrow_schema(schema)
    return Dataset.from_file(str(path), info=info, split=like.split)
