"""What a stranger can check of a published data set: its files, its card, its decision, its rows and its scores.

Nothing is believed but the source and the code: each line of the report says pass, fail or "cannot say", and why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.columns import EMBEDDING_PREFIX
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.decision_log import DROP, KEEP
from hf_safefilter.errors import IntegrityError, MissingError, PublishError, SafefilterError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.pipeline.changed_rows import ids_as_kept
from hf_safefilter.pipeline.rows_of_source import require_rows_of_source
from hf_safefilter.pipeline.starter_again import with_starter
from hf_safefilter.publish.card import stated_in
from hf_safefilter.publish.data_files import DROPPED, read_published
from hf_safefilter.publish.drop_reasons import BY_PEOPLE, NO_NUMBER, REACHED, by_split
from hf_safefilter.publish.provenance import Decision, Provenance
from hf_safefilter.publish.published_rows import kept_ids, mapping_of, require_added
from hf_safefilter.publish.rescoring import read_columns, require_ranks, rescored, step_of, tolerance_of
from hf_safefilter.publish.review_facts import read_rulings
from hf_safefilter.publish.scoring import take_scoring
from hf_safefilter.publish.whole_folder import require_undamaged
from hf_safefilter.saved.saved_rows import step_from
from hf_safefilter.scores.ranks import Ranks, RankScore

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.step import Step

Result = Literal["pass", "fail", "cannot say"]

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Line:
    """One check: its name, its result and why."""

    check: str
    result: Result
    why: str

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return {"check": self.check, "result": self.result, "why": self.why}


class _CannotSay(Exception):
    """Something is missing that a check needs."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The checks of a published folder.

    Attributes:
        folder: The folder.
        source: The rows that were filtered; None: what needs them cannot be said.
        repository: The name of the repository, as its card shows it; None for a folder that was not pushed.
        sample: Number of rows that are read and scored again; None: all.
        seed: Seed of the draw of these rows; None draws other ones each time.
    """

    folder: Path
    source: Dataset | DatasetDict | None = None
    repository: str | None = None
    sample: int | None = 64
    seed: int | None = None

    def lines(self) -> list[Line]:
        """All checks, in order; one that fails does not keep the others from being made."""
        record = self.folder / "provenance.json"
        if not record.is_file():
            raise MissingError(
                f"{self.folder} holds no provenance.json",
                fix="name a folder or repository that this program has written",
            )
        try:
            provenance = Provenance.from_json(record.read_text(encoding="utf-8"))
        except (IntegrityError, OSError, ValueError) as error:
            return [Line("record", "fail", _fact(error))]
        checks: dict[str, Callable[[Provenance], str]] = {
            "files": self._files,
            "card": self._card,
            "decision": self._decision,
            "rows": self._rows,
            "scores": self._scores,
        }
        return [_line(name, check, provenance) for name, check in checks.items()]

    def _files(self, provenance: Provenance) -> str:
        """Each file is the one that croissant.json describes, which says what the record says; none was added."""
        others = require_undamaged(self.folder, provenance)
        beside = f"; not described, and not loaded: {', '.join(map(shown, others))}" if others else ""
        return f"each file has its recorded sha256{beside}"

    def _card(self, provenance: Provenance) -> str:
        """What this program writes of a card, text and metadata, says what the record says."""
        card = (self.folder / "README.md").read_text(encoding="utf-8")
        included = any(name.startswith("row_") and name != "row_id" for name in _columns(self.folder / DROPPED))
        published = read_published(self.folder)
        if not stated_in(card, provenance, published, text_included=included, repository=self.repository):
            raise IntegrityError("README.md does not say what provenance.json says")
        return "it says what provenance.json says"

    def _decision(self, provenance: Provenance) -> str:
        """Every dropped row reaches the threshold, has no score, or was ruled out by people; the counts are right."""
        selection, counts = provenance.selection, provenance.counts
        if float.fromhex(selection.threshold_hex) != selection.threshold:
            raise IntegrityError("the threshold is written in two ways that differ")
        dropped = pq.read_table(self.folder / DROPPED)
        reasons = Counter(dropped["reason"].to_pylist())
        if dict(reasons) != counts.by_reason:
            raise IntegrityError("the reasons in dropped.parquet are not those that were counted")
        self._require_rulings(dropped, provenance)
        scores = _numbers(dropped, selection.column)
        for reason, score in zip(dropped["reason"].to_pylist(), scores.tolist(), strict=True):
            if reason.startswith(REACHED) != (math.isfinite(score) and score >= selection.threshold) or (
                reason == NO_NUMBER and math.isfinite(score)
            ):
                raise IntegrityError(f"a row was dropped for {reason!r}, and scores {score:.6g}")
        added = require_added(self.folder, provenance)
        kept = sum(pq.ParquetFile(path).metadata.num_rows for path in self._shards()) - added
        if kept != counts.kept or dropped.num_rows != counts.dropped or kept + dropped.num_rows != counts.rows:
            raise IntegrityError(
                f"{kept} rows are kept and {dropped.num_rows} dropped, other numbers than stated", fix=""
            )
        more = f", and {added} were added" if added else ""
        return f"{dropped.num_rows} rows were dropped by the rule that is stated, {kept} were kept{more}"

    def _require_rulings(self, dropped: pa.Table, provenance: Provenance) -> None:
        """Raise unless the kept and dropped rows are those that the published decisions of people keep and drop."""
        rulings = read_rulings(self.folder, provenance)
        by_people = [reason == BY_PEOPLE for reason in dropped["reason"].to_pylist()]
        ids = dropped["row_id"].to_pylist()
        ruled = rulings.of_rows(ids) if rulings is not None else np.full(len(ids), "", "U4")
        for row, ruling, overruled in zip(ids, ruled.tolist(), by_people, strict=True):
            if ruling == KEEP or (overruled and not ruling):
                raise IntegrityError("a row was dropped against the decisions of people", found=row)
        if rulings is not None:
            for _, row in kept_ids(self.folder, provenance):
                if rulings.of_rows([row])[0] == DROP:
                    raise IntegrityError("a row was kept that people decided to drop", found=row)

    def _rows(self, provenance: Provenance) -> str:
        """Kept and dropped rows together are those of the source: none is invented, missing or in both."""
        return require_rows_of_source(self.folder, provenance, self._source())

    def _scores(self, provenance: Provenance) -> str:
        """Some rows of the source, drawn now, have the scores that decided."""
        self._source()
        provenance, with_what = self._with_what_was_published(provenance)
        scoring = _Scoring.of(provenance)
        rulings = read_rulings(self.folder, provenance)
        dropped = pq.read_table(self.folder / DROPPED)
        scoring.require_ranks(dropped)
        recorded = scoring.recorded(dropped)
        checked, held = 0, dict[str, set[str]]()
        if scoring.changed:
            for split, id_ in kept_ids(self.folder, provenance):
                held.setdefault(split, set()).add(id_)
        for split, part in self._drawn().items():
            for start in range(0, len(part), _ROWS):
                piece = part.select(range(start, min(start + _ROWS, len(part))))
                ids = _ids_of(piece, mapping_of(provenance))
                ruled = [""] * len(ids) if rulings is None else rulings.of_rows(ids).tolist()
                before = {id_: recorded.get((split, id_)) for id_ in ids}
                columns = rescored(piece, scoring.steps)
                scoring.require_alike(ids, columns, before, list(map(bool, ruled)))
                if scoring.changed:
                    free = [place for place, word in enumerate(ruled) if not word]
                    scoring.require_changed(free, ids, piece, columns, before, held.get(split, set()))
                checked += len(ids)
        return f"{checked} rows, drawn now, were read and scored again{with_what}"

    def _with_what_was_published(self, provenance: Provenance) -> tuple[Provenance, str]:
        """The record with references that can be had here, and what rows are scored with that is not this user's."""
        taken = take_scoring(self.folder, provenance.steps)
        try:
            embed = next((step_from(one) for one in provenance.steps if one.get("step") == "EmbedLayers"), None)
            steps, made = with_starter(provenance.steps, provenance.references, embed)
        except SafefilterError as error:
            raise _CannotSay(f"the references cannot be made again here: {error.fact}") from error
        words = [f"the {' and the '.join(sorted(set(taken)))} published with them"] if taken else []
        words += ["the starter references, made again here"] if made else []
        return provenance.model_copy(update={"steps": steps}), f", with {' and '.join(words)}" if words else ""

    def _shards(self) -> list[Path]:
        return sorted((self.folder / "data").glob("*.parquet"))

    def _source(self) -> Dataset | DatasetDict:
        if self.source is None:
            raise _CannotSay("the rows that were filtered are not at hand")
        return self.source

    def _drawn(self) -> dict[str, Dataset]:
        """The rows that are scored again, by split."""
        parts = by_split(self._source())
        if self.sample is None:
            return parts
        total = sum(map(len, parts.values()))
        chosen = np.sort(np.random.default_rng(self.seed).permutation(total)[: self.sample])
        drawn, start = {}, 0
        for name, part in parts.items():
            own = chosen[(chosen >= start) & (chosen < start + len(part))] - start
            start += len(part)
            if len(own):
                drawn[name] = part.select(own)
        return drawn


def _line(name: str, check: Callable[[Provenance], str], provenance: Provenance) -> Line:
    try:
        return Line(name, "pass", check(provenance))
    except _CannotSay as error:
        return Line(name, "cannot say", str(error))
    except (SafefilterError, OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        return Line(name, "fail", _fact(error))


def _fact(error: Exception) -> str:
    if isinstance(error, SafefilterError):
        return error.fact + (f" ({error.found})" if error.found else "")
    return f"{type(error).__name__}: {error}"


def _ids_of(part: Dataset, columns: Mapping[str, str] | None) -> list[str]:
    text = part.remove_columns([name for name in part.column_names if name.startswith(EMBEDDING_PREFIX)])
    tables = text.with_format("arrow").iter(_ROWS)
    return [row_id(conversation) for table in tables for conversation in conversations(Batch(table), columns)]


@dataclass(frozen=True, slots=True)
class _Scoring:
    """The steps of a record, and what they are held to.

    Attributes:
        steps: The steps.
        column: The score column that decided.
        threshold: Rows that score this or more were dropped.
        selection: The decision.
        mapping: Where things stand in a row.
        read: The score columns that are computed from the rows themselves.
        tolerances: By how much each of these may differ, float64 (columns,).
    """

    steps: list[Step]
    column: str
    threshold: float
    selection: Decision
    mapping: Mapping[str, str] | None
    read: tuple[str, ...]
    tolerances: np.ndarray

    @property
    def changed(self) -> bool:
        """Whether rows that reach the threshold may have been kept, switched or masked."""
        return self.selection.action != "drop"

    @classmethod
    def of(cls, provenance: Provenance) -> _Scoring:
        # A record of a stranger does not choose where the rows of the source are sent.
        asked = [record["endpoint"] for record in provenance.steps if record.get("endpoint")]
        try:
            steps = [step_from(record) for record in provenance.steps if not record.get("endpoint")]
        except SafefilterError as error:
            raise _CannotSay(f"a step cannot be made here: {error.fact}") from error
        selection = provenance.selection
        try:
            deciding, read = step_of(selection.column, steps), read_columns(selection.column, steps)
        except PublishError:
            if not asked:
                raise
            raise _CannotSay(
                f"it was decided by a model at {asked[0]}, whose weights nobody can pin, and which is not asked"
            ) from None
        tolerances = np.array([provenance.check.tolerance])
        if isinstance(deciding, RankScore):
            if read != deciding.needs():
                raise _CannotSay("ranks of ranks are not read again")
            tolerances = np.array([tolerance_of(fitted) for fitted in Ranks.of(deciding.ranks).sorted])
        return cls(steps, selection.column, selection.threshold, selection, mapping_of(provenance), read, tolerances)

    def require_ranks(self, dropped: pa.Table) -> None:
        """Raise unless the recorded ranks follow from the recorded scores."""
        from datasets import Dataset
        from datasets.table import InMemoryTable

        require_ranks(Dataset(InMemoryTable(dropped)), self.steps, self.column)

    def recorded(self, dropped: pa.Table) -> dict[tuple[str, str], np.ndarray]:
        """Split and row id -> the scores that are recorded of a dropped row, float64 (columns,)."""
        scores = np.stack([_numbers(dropped, name) for name in self.read], axis=1)
        keys = zip(dropped["split"].to_pylist(), dropped["row_id"].to_pylist(), strict=True)
        return dict(zip(keys, scores, strict=True))

    def require_alike(
        self,
        ids: list[str],
        columns: Mapping[str, Any],
        recorded: Mapping[str, np.ndarray | None],
        by_people: list[bool],
    ) -> None:
        """Raise unless dropped rows have their recorded scores, and no other reaches the threshold but by people."""
        again = self._scores_in(columns)
        for id_, scores, least, ruled in zip(ids, again, self._least(again), by_people, strict=True):
            before = recorded[id_]
            if before is not None and not self._agree(scores, before):
                raise IntegrityError(f"a dropped row has the scores {scores.tolist()}, others are recorded", found=id_)
            if before is None and not (ruled or least < self.threshold or (self.changed and np.isfinite(least))):
                raise IntegrityError(f"a row was kept that has the scores {scores.tolist()}", found=id_)

    def require_changed(
        self,
        free: list[int],
        ids: list[str],
        rows: Dataset,
        columns: Mapping[str, Any],
        recorded: Mapping[str, np.ndarray | None],
        held: set[str],
    ) -> None:
        """Raise unless rows on which nobody has decided are kept as the score changes them, or dropped.

        Args:
            free: Places of these rows.
            ids: Ids of all rows.
            rows: The rows of the source.
            columns: Their columns, scored again.
            recorded: Row id -> the scores that are recorded of a dropped row.
            held: Ids of the kept rows.
        """
        scores = self._scores_in(columns)
        least, most = self._least(scores), self._least(scores + 2 * self.tolerances)
        expected = ids_as_kept(
            rows, columns, self.selection, reached=least >= self.threshold,
            near=(least < self.threshold) & (most >= self.threshold), tolerance=float(self.tolerances.max()),
            columns=self.mapping,
        )  # fmt: skip
        for place in free:
            name = expected[place]
            if name == "" and recorded[ids[place]] is None:
                raise IntegrityError(
                    "a row was kept that has no score, or nothing that may be trained on", found=ids[place]
                )
            if name and name not in held:
                raise IntegrityError("a row is not kept as its scores say", found=ids[place])

    def _scores_in(self, columns: Mapping[str, Any]) -> np.ndarray:
        return np.stack([np.asarray(columns[name], dtype=np.float64) for name in self.read], axis=1)

    def _agree(self, scores: np.ndarray, before: np.ndarray) -> bool:
        known = np.isfinite(before)
        same = bool(np.array_equal(np.isfinite(scores), known))
        return same and bool((np.abs(scores - before)[known] <= self.tolerances[known]).all())

    def _least(self, scores: np.ndarray) -> np.ndarray:
        """The smallest deciding score of each row, float64 (n,), that rounding of `scores` (n, columns) allows."""
        lower = dict(zip(self.read, (scores - self.tolerances).T, strict=True))
        deciding = step_of(self.column, self.steps)
        if not isinstance(deciding, RankScore):
            return lower[self.column]
        return np.asarray(deciding.compute(Batch(lower), None)[self.column], dtype=np.float64)


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return Batch(table).numbers(column)


def _columns(path: Path) -> list[str]:
    return list(pq.read_schema(path).names)
