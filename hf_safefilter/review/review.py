"""A review of scored rows: what the page shows, and the decisions that it writes."""

from __future__ import annotations

import base64
import shlex
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.checks import is_finite
from hf_safefilter.columns import score_column
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.splits import count_rows
from hf_safefilter.decide.decision_log import (
    DECISIONS,
    DROP,
    KEEP,
    MASK,
    WITHDRAWN,
    DecisionLog,
    RowDecision,
    is_later,
)
from hf_safefilter.decide.evaluate import control_scores
from hf_safefilter.decide.reviewer_agreement import Agreement
from hf_safefilter.decide.select import IsSafe
from hf_safefilter.errors import DataError, OptionError, SafefilterError
from hf_safefilter.errors.redaction import shown
from hf_safefilter.labeling.decided_labels import DecidedLabels
from hf_safefilter.pipeline.stored_decision import decision_in
from hf_safefilter.publish.score_verdict import verdict_without_labels
from hf_safefilter.review.learning import REFERENCES, learn, rows_to_ask, threshold_with
from hf_safefilter.review.row_columns import RowColumns
from hf_safefilter.review.row_map import RowMap, row_map
from hf_safefilter.review.row_view import row_view
from hf_safefilter.review.text_search import rows_with
from hf_safefilter.saved.decision import DECISION
from hf_safefilter.saved.saved_rows import SCORED
from hf_safefilter.scores.probe import ProbeScore

if TYPE_CHECKING:
    from hf_safefilter.decide.verdict import Verdict
    from hf_safefilter.saved.saved_rows import Saved

OUTPUT = Path("labelled")
"""Folder of the rows that are scored again, where no other is asked for."""

START = 0.1
"""Share of the rows above the threshold that the page starts with, where no other is asked for."""

_LONGEST_NAME, _LONGEST_NOTE = 80, 4000


class Review:
    """Scored rows, a decision to start from, and the log of what people decide on single rows.

    Args:
        saved: The scored rows.
        is_safe: The decision to start from.
        log: File of the decisions; it is made with the first of them, and read if it is there.
        folder: Where the scored rows lie, for the command that takes the decisions over.
        output: Folder that gets the rows when they are scored again.

    Raises:
        DataError: There are no rows.
        IntegrityError: The log is damaged.
    """

    def __init__(self, saved: Saved, is_safe: IsSafe, log: Path, folder: Path, output: Path = OUTPUT) -> None:
        if not count_rows(saved.rows):
            raise DataError("there are no rows to review", fix="name another folder")
        self.log = DecisionLog(log)
        self._output = output
        self._show(saved, is_safe, folder)
        self._by_row: dict[str, dict[str, RowDecision]] = {}
        for decision in self.log.current.values():
            self._by_row.setdefault(decision.row_id, {})[decision.who] = decision
        self._lock, self._slow = threading.Lock(), threading.RLock()

    def _show(self, saved: Saved, is_safe: IsSafe, folder: Path) -> None:
        """Show these rows from now on."""
        self.rows = RowColumns(saved, is_safe.column)
        self.saved, self.is_safe, self._folder = saved, is_safe, folder
        for name in ("_map", "_verdict"):
            self.__dict__.pop(name, None)

    @classmethod
    def of(
        cls,
        folder: Path,
        log: Path,
        *,
        output: Path = OUTPUT,
        by: str | None = None,
        drop_fraction: float | None = None,
        drop_count: int | None = None,
        threshold: float | None = None,
        trust_vectors: bool = False,
    ) -> Review:
        """A review of a folder that ``score`` or ``select`` has written.

        Args:
            folder: The folder.
            log: File of the decisions, outside of the folder, which is signed.
            output: Folder that gets the rows when they are scored again.
            by: Score column; not for a folder that holds a decision.
            drop_fraction: See `threshold_for`; without any of these three, `START`.
            drop_count: See `threshold_for`.
            threshold: Rows that score this or more are above the threshold.
            trust_vectors: Whether the user trusts who has written the folder, if it was not this machine.

        Raises:
            OptionError: The log lies in the folder, or the options do not make a decision.
            MissingError: The folder was not written by this package.
            IntegrityError: The folder or the log was altered.
        """
        if log.resolve().is_relative_to(folder.resolve()):
            raise OptionError(
                f"{log} lies in the folder that is reviewed, which is signed and must not change",
                fix="name a file elsewhere: `decisions='decisions.jsonl'`",
            )
        for written in (output / SCORED, output / REFERENCES):
            inside = written.resolve().is_relative_to(folder.resolve())
            if inside and written.resolve() != folder.resolve():
                raise OptionError(
                    f"{written} lies in the folder that is reviewed, which is signed and must not change",
                    fix="name another folder for the rows that are scored again: `output='labelled'`",
                )
        ways = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold}
        decided = (folder / DECISION).is_file()
        if by is not None and all(value is None for value in ways.values()) and not decided:
            ways["drop_fraction"] = START
        saved, is_safe = decision_in(folder, by, ways, trust_vectors)
        return cls(saved, is_safe, log, folder / SCORED if decided else folder, output)

    def command(self, threshold: str) -> str:
        """The command that takes a threshold and the decisions made here over into a folder to publish."""
        words = [str(self._folder), "--by", self.rows.column, "--threshold", threshold]
        if self.log.path.exists():
            words += ["--decisions", str(self.log.path)]
        if self.is_safe.action != "drop":
            words = ["select", *words, "--action", self.is_safe.action, "--output", "decided"]
        else:
            words = ["card", *words, "--license", "LICENSE", "--source", "SOURCE", "--output", "out"]
        return shlex.join(["hf-safefilter", *words])

    def overview(self) -> dict[str, Any]:
        """All that the page needs of all rows, but for the map: numbers as base64 of little-endian arrays."""
        rows = self.rows
        alike = not np.array_equal(rows.first, np.arange(len(rows)))
        return {
            "name": shown(self.saved.name),
            "column": rows.column,
            "rule": self.is_safe.rule,
            "action": self.is_safe.action,
            "threshold": self.is_safe.threshold,
            "rows": len(rows),
            "scores": _packed(rows.scores, np.float64),
            "turns": _packed(rows.turns, np.int16),
            "first": _packed(rows.first, np.int32) if alike else None,
            "groups": {
                name: {"names": list(group.names), "codes": _packed(group.codes, np.uint16)}
                for name, group in rows.groups.items()
            },
            "decisions": {str(place): self._plain_decisions(place) for place in self._decided()},
            "log": self.log.path.name,
            **self._state(),
        }

    def map(self) -> dict[str, Any]:
        """The map of the rows; {} if they have no vectors."""
        drawn = self.row_map
        if drawn is None:
            return {}
        points = {name: _packed(getattr(drawn, name), np.float32) for name in ("rows", "unsafe", "safe")}
        return {**points, "share": drawn.share, "column": drawn.column}

    @cached_property
    def _map(self) -> RowMap | None:
        return row_map(self.rows)

    @property
    def row_map(self) -> RowMap | None:
        """The map of the rows, made once."""
        with self._slow:
            return self._map

    def verdict(self) -> dict[str, Any]:
        """What is known of the score that decides, and whether it is good."""
        with self._slow:
            verdict = self._verdict
        if verdict is None:
            return {"sentence": "the verdict on this score is not known on this machine", "finding": "not known"}
        facts = {"sentence": verdict.sentence, "finding": verdict.finding}
        return facts | {"trusted": verdict.trusted, "bad": verdict.bad}

    @cached_property
    def _verdict(self) -> Verdict | None:
        try:
            lengths = control_scores(self.saved.rows, self.saved.mapping)[score_column("length")]
            return verdict_without_labels(self.rows.column, self.rows.scores, lengths, self.saved.steps)
        except SafefilterError:  # the references of the score are not on this machine
            return None

    def row(self, place: int, *, text: bool) -> dict[str, Any]:
        """One row; what it says only if `text`.

        Raises:
            OptionError: There is no such row.
        """
        self._require(place)
        return row_view(self.rows, place, text=text) | {"decisions": self._plain_decisions(place)}

    def words(self, place: int) -> dict[str, Any]:
        """The words of one row with a score each.

        Raises:
            OptionError: There is no such row.
            SafefilterError: See `word_scores`.
        """
        from hf_safefilter.review.word_scores import word_scores  # which brings torch

        self._require(place)
        with self._slow:
            return word_scores(self.rows, place)

    def search(self, words: str) -> dict[str, Any]:
        """The rows in which some words stand."""
        places = rows_with(self.rows.parts, words) if words.strip() else np.arange(len(self.rows))
        return {"rows": _packed(places, np.int32), "count": len(places)}

    def decide(self, place: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a decision to the log; it is on the disk when this returns.

        Args:
            place: Index of the row.
            values: ``decision``, ``who``, and if they are known ``turns``, ``note`` and ``threshold``.

        Raises:
            OptionError: The values make no decision on this row.
        """
        self._require(place)
        decision = self._decision(place, values)
        with self._lock:
            self._append(decision)
            return {"place": int(self.rows.first[place]), "decisions": self._plain_decisions(place), **self._state()}

    def take(self, decisions: Iterable[RowDecision]) -> dict[str, int]:
        """Write decisions that were made elsewhere to the log, each with its own time.

        What a person has decided here is never replaced by what the same name has decided earlier, or at a time that
        is not known.

        Returns:
            Number of decisions that were taken, that were known, that are on other rows, and that were left because the
            same name has decided otherwise later.

        Raises:
            OptionError: One of them does not fit its row; those before it are taken.
        """
        counts = {"taken": 0, "known": 0, "of_other_rows": 0, "older": 0}
        place_of = dict(zip(reversed(self.rows.ids), range(len(self.rows) - 1, -1, -1), strict=True))
        for given in decisions:
            if given.row_id not in place_of:
                counts["of_other_rows"] += 1
                continue
            place = place_of[given.row_id]
            values = {name: getattr(given, name) for name in ("decision", "who", "note", "reference")}
            decision = self._decision(place, values | {"turns": list(given.turns)})
            known = self._by_row.get(given.row_id, {}).get(decision.who)
            if _say_the_same(known, decision, dated=bool(given.when)):
                counts["known"] += 1
            elif known is not None and not is_later(given.when, known.when):
                counts["older"] += 1
            else:
                with self._lock:
                    self._append(replace(decision, when=given.when or decision.when, threshold=given.threshold))
                counts["taken"] += 1
        return counts

    def next_rows(self) -> dict[str, Any]:
        """Ten rows whose label would change the score most.

        Raises:
            SafefilterError: See `learning.rows_to_ask`.
        """
        with self._slow:
            return {"rows": rows_to_ask(self.saved, self._decided_now())}

    def score_again(self, threshold: Any) -> dict[str, Any]:
        """Fit the score to the decisions, score all rows again, and show them; as many lie above the threshold as do.

        Args:
            threshold: The threshold on the page; that of the start if it is no number.

        Raises:
            SafefilterError: See `learning.learn`; nothing is changed.
        """
        with self._slow:
            bound = float(threshold) if is_finite(threshold) else self.is_safe.threshold
            above = int((self.rows.scores >= bound).sum())
            learnt = learn(self.saved, self._decided_now(), self._output)
            renewed = {name for step in learnt.saved.steps if step not in self.saved.steps for name in step.produces()}
            column = self.rows.column
            if column not in renewed:  # a score that learns nothing, such as the length
                probes = [step for step in learnt.saved.steps if isinstance(step, ProbeScore)]
                column = next((step.produces()[0] for step in probes if step not in self.saved.steps), column)
            is_safe = IsSafe(column, threshold_with(above, learnt.saved, column))
            self._show(learnt.write(self._output), is_safe, self._output / SCORED)
            return {"sentence": shown(learnt.sentence), "output": shown(str(self._output / SCORED))}

    def _decided_now(self) -> DecidedLabels:
        with self._lock:
            return DecidedLabels.of(self.log)

    def decisions_on(self, place: int) -> list[RowDecision]:
        """The decisions that count on a row, one a person."""
        return list(self._by_row.get(self.rows.ids[place], {}).values())

    def _append(self, decision: RowDecision) -> None:
        self.log.append(decision)
        of_row = self._by_row.setdefault(decision.row_id, {})
        of_row.pop(decision.who, None)
        if decision.decision != WITHDRAWN:
            of_row[decision.who] = decision

    def _decision(self, place: int, values: Mapping[str, Any]) -> RowDecision:
        chosen, who, note = (values.get(name, "") for name in ("decision", "who", "note"))
        turns, threshold = values.get("turns", []), values.get("threshold")
        if chosen not in (*DECISIONS, WITHDRAWN):
            raise OptionError(f"{chosen!r} is no decision", found=", ".join(DECISIONS), fix="use one of these")
        if not isinstance(who, str) or not shown(who).strip() or len(who) > _LONGEST_NAME:
            raise OptionError(
                "a decision needs the name of who makes it", fix="write your name on the page, or `who=...`"
            )
        if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
            raise OptionError(f"a note has at most {_LONGEST_NOTE} characters", fix="write a shorter one")
        if (chosen == MASK) != bool(turns):
            raise OptionError("turns are masked, and no other decision has some", fix="choose a turn to mask")
        if turns:
            (said,) = as_conversations(self.rows.row(place), self.saved.mapping)
            if not isinstance(turns, list) or not all(_is_turn(turn, len(said.messages)) for turn in turns):
                raise OptionError(f"the row has turns 0 to {len(said.messages) - 1}", fix="mask one of these")
        score = float(self.rows.scores[place])
        return RowDecision(
            self.rows.ids[place],
            chosen,
            shown(who).strip(),
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            tuple(sorted(set(turns))),
            float(threshold) if threshold is not None and is_finite(threshold) else None,
            score if np.isfinite(score) else None,
            shown(note),
            values.get("reference") is True and chosen in (KEEP, DROP),
        )

    def _require(self, place: int) -> None:
        if not 0 <= place < len(self.rows):
            raise OptionError(f"there is no row {place}", found=f"{len(self.rows)} rows", fix="name one of these")

    def _decided(self) -> list[int]:
        """The first row of each id on which somebody has decided."""
        return [place for place in np.unique(self.rows.first).tolist() if self._by_row.get(self.rows.ids[place])]

    def _plain_decisions(self, place: int) -> list[dict[str, Any]]:
        names = ("who", "decision", "turns", "note", "when", "reference")
        return [{name: getattr(decision, name) for name in names} for decision in self.decisions_on(place)]

    def _state(self) -> dict[str, Any]:
        """Who has decided, and how far they agree."""
        several = [decision for row in self._by_row.values() if len(row) > 1 for decision in row.values()]
        reviewers = sorted({who for row in self._by_row.values() for who in row})
        told = {"command": shown(self.command("THRESHOLD")), "reviewers": reviewers}
        return told | {"agreement": asdict(Agreement.of(several))}


def _say_the_same(known: RowDecision | None, given: RowDecision, *, dated: bool) -> bool:
    """Whether a decision is known; of one without a time nothing is known but the decision itself."""
    if known is None:
        return given.decision == WITHDRAWN
    names = ("decision", "turns", "note", "reference") if dated else ("decision",)
    return all(getattr(known, name) == getattr(given, name) for name in names)


def _is_turn(turn: Any, count: int) -> bool:
    return isinstance(turn, int) and not isinstance(turn, bool) and 0 <= turn < count


def _packed(values: np.ndarray, kind: type[np.generic]) -> str:
    """Base64 of an array in little-endian order."""
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<")).tobytes()).decode()
