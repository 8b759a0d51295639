"""What a stranger can check of a published data set: its files, its card, its decision, its rows and its scores.

Nothing is believed but the source and the code: each line of the report says pass, fail or "cannot say", and why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
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
from hf_safefilter.errors import (
    IntegrityError,
    MissingError,
    ModelError,
    SafefilterError,
    is_disk_full,
    is_out_of_memory,
    is_unusable_place,
)
from hf_safefilter.errors.redaction import shown
from hf_safefilter.pipeline.made_again import made_again
from hf_safefilter.pipeline.recorded_scoring import CannotSay, RecordedScoring, numbers_in
from hf_safefilter.pipeline.rows_of_source import require_rows_of_source
from hf_safefilter.publish.card import stated_in
from hf_safefilter.publish.data_files import DROPPED, read_published
from hf_safefilter.publish.drop_reasons import BY_PEOPLE, NO_NUMBER, REACHED, by_split
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.published_rows import kept_ids, mapping_of, require_added
from hf_safefilter.publish.rescoring import rescored
from hf_safefilter.publish.review_facts import read_rulings
from hf_safefilter.publish.scoring import facts_of_probe, is_here, take_ranks
from hf_safefilter.publish.whole_folder import require_undamaged
from hf_safefilter.saved.saved_rows import step_from
from hf_safefilter.scores.ranks import Ranks

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
        scores = numbers_in(dropped, selection.column)
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
        provenance, made = self._with_what_can_be_had(provenance)
        scoring = RecordedScoring.of(provenance)
        rulings = read_rulings(self.folder, provenance)
        dropped = pq.read_table(self.folder / DROPPED)
        scoring.require_ranks(dropped)
        recorded = scoring.recorded(dropped)
        held = dict[str, set[str]]()
        if scoring.changed:
            for split, id_ in kept_ids(self.folder, provenance):
                held.setdefault(split, set()).add(id_)
        pieces = self._pieces(scoring)
        first = list(islice(pieces, 1)) if self.sample is None else list(pieces)
        scoring = scoring.bounded([columns for *_, columns in first])
        own: list[np.ndarray] = []
        for split, piece, columns in chain(first, pieces):
            ids = _ids_of(piece, mapping_of(provenance))
            ruled = [""] * len(ids) if rulings is None else rulings.of_rows(ids).tolist()
            before = {id_: recorded.get((split, id_)) for id_ in ids}
            scoring.require_alike(ids, columns, before, list(map(bool, ruled)))
            if scoring.changed:
                free = [place for place, word in enumerate(ruled) if not word]
                scoring.require_changed(free, ids, piece, columns, before, held.get(split, set()))
            own.append(scoring.scores_in(columns))
        if own:
            scoring.require_ranks_of(np.concatenate(own), whole=self.sample is None)
        words = f", with {' and '.join(made)}, made again here" if made else ""
        return f"{sum(map(len, own))} rows, drawn now, were read and scored again{words}"

    def _pieces(self, scoring: RecordedScoring) -> Iterator[tuple[str, Dataset, dict[str, Any]]]:
        """Split, rows that are drawn, and their columns, scored again."""
        for split, part in self._drawn().items():
            for start in range(0, len(part), _ROWS):
                piece = part.select(range(start, min(start + _ROWS, len(part))))
                try:
                    columns = rescored(piece, scoring.steps)
                except (MissingError, ModelError) as error:
                    raise CannotSay(f"rows cannot be scored here: {error.fact}") from error
                yield split, piece, {name: cells for name, cells in columns.items() if EMBEDDING_PREFIX not in name}

    def _with_what_can_be_had(self, provenance: Provenance) -> tuple[Provenance, list[str]]:
        """The record with what can be made again here in place of what this user does not have, and what that is."""
        for record in provenance.steps:
            digest = record.get("ranks")
            if isinstance(digest, str) and not is_here(Ranks, digest):
                take_ranks(self.folder, digest, provenance.counts.rows)
        try:
            embed = _reader(provenance)
            steps, made = made_again(
                provenance.steps, provenance.references, embed, lambda digest: facts_of_probe(self.folder, digest)
            )
        except (MissingError, ModelError) as error:
            raise CannotSay(f"what rows were scored with cannot be made again here: {error.fact}") from error
        return provenance.model_copy(update={"steps": steps}), made

    def _shards(self) -> list[Path]:
        return sorted((self.folder / "data").glob("*.parquet"))

    def _source(self) -> Dataset | DatasetDict:
        if self.source is None:
            raise CannotSay("the rows that were filtered are not at hand")
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
    except CannotSay as error:
        return Line(name, "cannot say", str(error))
    except Exception as error:  # what a stranger has written fails in many ways, and the other lines are still wanted
        return Line(name, "cannot say" if _is_of_this_machine(error) else "fail", _fact(error))


def _is_of_this_machine(error: Exception) -> bool:
    """Whether it lacks memory or room; what was published has no words in such an error."""
    if isinstance(error, SafefilterError) and isinstance(error.__cause__, OSError):
        return is_disk_full(error.__cause__)
    kinds = (MemoryError, OSError, RuntimeError)
    lacks = is_out_of_memory(error) or is_disk_full(error) or is_unusable_place(error)
    return lacks and isinstance(error, kinds) and not isinstance(error, SafefilterError)


def _reader(provenance: Provenance) -> Step | None:
    """The step that has read the rows; None if there is none, or it cannot be made by this version."""
    try:
        return next((step_from(one) for one in provenance.steps if one.get("step") == "EmbedLayers"), None)
    except SafefilterError:
        return None


def _fact(error: Exception) -> str:
    if isinstance(error, SafefilterError):
        return error.fact + (f" ({error.found})" if error.found else "")
    return f"{type(error).__name__}: {error}"


def _ids_of(part: Dataset, columns: Mapping[str, str] | None) -> list[str]:
    text = part.remove_columns([name for name in part.column_names if name.startswith(EMBEDDING_PREFIX)])
    tables = text.with_format("arrow").iter(_ROWS)
    return [row_id(conversation) for table in tables for conversation in conversations(Batch(table), columns)]


def _columns(path: Path) -> list[str]:
    return list(pq.read_schema(path).names)
