"""Two selections of the same rows, side by side: which rows come in, which go out, and what was done otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from hf_safefilter.decide.thresholds import numbers_of
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.publish.croissant import require_described
from hf_safefilter.publish.data_files import DROPPED
from hf_safefilter.publish.drop_reasons import by_split, reasons_of, row_ids
from hf_safefilter.publish.folder import PROVENANCE
from hf_safefilter.publish.provenance import Provenance
from hf_safefilter.publish.published_rows import kept_ids
from hf_safefilter.saved.decision import DECISION, read_decision

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.decide.select import IsSafe

Change = Literal["in", "out", "new", "gone"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a row: its score, None where it is not recorded, and why it was dropped, "" if it was kept."""

    score: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """One selection: the fate of each row by split and id, and how it was made, as plain values."""

    fates: Mapping[tuple[str, str], Fate]
    facts: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of_rows(cls, scored: Dataset | DatasetDict, is_safe: IsSafe, **facts: Any) -> Selection:
        """A selection of scored rows."""
        fates = {}
        for name, part in by_split(scored).items():
            scores = numbers_of(part, is_safe.column).tolist()
            for row, score, reason in zip(row_ids(part), scores, reasons_of(part, is_safe), strict=True):
                fates[name, row] = Fate(_number(score), reason)
        return cls(fates, _decided(is_safe.to_json() | {"decisions": is_safe.decisions_digest}) | facts)

    @classmethod
    def open(cls, folder: Path, *, trust_vectors: bool = False) -> Selection:
        """The selection of a folder that select has written, or of a published one.

        Raises:
            MissingError: It is neither.
            IntegrityError: A file was altered or is missing, or select has written it elsewhere and it is not trusted.
        """
        if (folder / DECISION).is_file():
            decision = read_decision(folder, trust_vectors=trust_vectors)
            steps = [step.record() for step in decision.saved.steps]
            return cls.of_rows(decision.saved.rows, decision.is_safe, **_read(steps), source=decision.saved.name)
        if not (folder / PROVENANCE).is_file():
            raise MissingError(
                f"{folder} holds no selection",
                found=f"neither {DECISION} nor {PROVENANCE}",
                fix="name a folder that select, card or run has written, or a published repository",
            )
        provenance = Provenance.from_json((folder / PROVENANCE).read_text(encoding="utf-8"))
        review = None if provenance.review is None else provenance.review.sha256
        facts = _decided(provenance.selection.model_dump() | {"decisions": review}) | _read(provenance.steps)
        require_described(folder)
        try:
            fates = dict(_published(folder, provenance))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise IntegrityError(
                f"{folder} does not hold what its record states", found=str(error)[:200], fix="write the folder again"
            ) from error
        return cls(fates, facts | {"source": provenance.source.name})


def _published(folder: Path, provenance: Provenance) -> Iterator[tuple[tuple[str, str], Fate]]:
    for key in kept_ids(folder, provenance):
        yield key, Fate(None, "")
    column = provenance.selection.column
    for row in pq.read_table(folder / DROPPED, columns=["split", "row_id", "reason", column]).to_pylist():
        yield (row["split"], row["row_id"]), Fate(_number(row[column]), row["reason"])


def _number(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _decided(decision: Mapping[str, Any]) -> dict[str, Any]:
    """The decision as people compare it."""
    threshold = decision["threshold"]
    threshold = float.fromhex(threshold) if isinstance(threshold, str) else threshold
    return {"score": decision["column"], "threshold": threshold, "rule": decision["rule"],
            "action": decision["action"], "decisions of people": decision["decisions"]}  # fmt: skip


def _read(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the rows were read and scored: of each step, its options."""
    return {str(step["step"]): {name: value for name, value in step.items() if name != "step"} for step in steps}


@dataclass(frozen=True, slots=True)
class Move:
    """A row whose fate differs.

    Attributes:
        split: Its split.
        row_id: Its id.
        change: "in": it was dropped and is kept now; "out": the reverse; "new" and "gone": it stands in one alone.
        before: Its fate in the first selection; None if it is not there.
        after: The same of the second.
    """

    split: str
    row_id: str
    change: Change
    before: Fate | None
    after: Fate | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two selections compared.

    Attributes:
        moves: The rows whose fate differs, in the order of the first selection, then of the second.
        facts: What was done otherwise: name -> its two values.
        alike: Number of rows with the same fate in both.
    """

    moves: tuple[Move, ...]
    facts: Mapping[str, tuple[Any, Any]]
    alike: int

    @classmethod
    def between(cls, before: Selection, after: Selection) -> Difference:
        """From one selection to another."""
        moves = []
        for key in dict.fromkeys([*before.fates, *after.fates]):
            old, new = before.fates.get(key), after.fates.get(key)
            if (change := _change(old, new)) is not None:
                moves.append(Move(*key, change, old, new))
        names = dict.fromkeys([*before.facts, *after.facts])
        values = {name: (before.facts.get(name), after.facts.get(name)) for name in names}
        facts = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
        both = len(before.fates.keys() & after.fates.keys())
        return cls(tuple(moves), facts, both - sum(move.change in ("in", "out") for move in moves))

    def counts(self) -> dict[str, int]:
        """Number of rows by change."""
        return {change: sum(move.change == change for move in self.moves) for change in get_args(Change)}

    def sentence(self) -> str:
        """The counts, for a person."""
        words = {"in": "come in", "out": "go out", "new": "are new", "gone": "are gone"}
        parts = [f"{count} rows {words[change]}" for change, count in self.counts().items() if count]
        return ", ".join([*parts, f"{self.alike} fare alike"])


def _change(before: Fate | None, after: Fate | None) -> Change | None:
    if before is None or after is None:
        return "new" if before is None else "gone"
    if bool(before.reason) == bool(after.reason):
        return None
    return "in" if before.reason else "out"
