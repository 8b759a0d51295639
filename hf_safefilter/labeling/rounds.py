"""Rounds of labels: choose rows, take the answers, refit the probe, measure, choose again."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.checks import require_choice, require_number
from hf_safefilter.columns import EMBEDDING_PREFIX, ROW_ID, SPANS, embedding_columns
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import as_conversations, prompt_of
from hf_safefilter.data.splits import missing_column, parts_of
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.labeling.choose_rows import doubts, next_rows
from hf_safefilter.labeling.curve import CurvePoint, curve_point
from hf_safefilter.labeling.decided_labels import DecidedLabels
from hf_safefilter.labeling.label_log import ANSWERS, SAFE, UNSAFE, WITHDRAWN, Answer, LabelLog
from hf_safefilter.labeling.read_rows import ReadRows
from hf_safefilter.scores.base import record_batches
from hf_safefilter.scores.probe.fit import boundaries, fit_probe, reference_examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset, DatasetDict

    from hf_safefilter.columns import Layer
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.probe.fit import Boundaries, Probe

PER_ROUND = 10
"""Answers in a round."""

WEIGHT = 3.0
"""Weight of a labelled row in that of a reference: it is of the rows' own domain, but there are few. On answers to
XSTest prompts, 10 learns faster from labels without errors, and loses where a fifth are wrong; 1 learns slowly."""

SHORTLIST = 2000
"""The most doubtful rows, among which the spread is sought: so many vectors are held in memory."""


class LabelRounds:
    """Rows, references and the labels given so far.

    Rows are named by their position, counted through all splits. Rows with the same id are one row.

    Args:
        rows: Embedded rows with ids.
        references: Unsafe answers, refusals and ordinary rows.
        layers: Layers of the probe.
        log: File of the answers, which is made with the first of them, and read if it is there; or decisions of
            people, which are the answers then, and given elsewhere.
        columns: Columns of prompt and response, for rows of no known shape.
        weight: Weight of a labelled row in that of a reference.
        form: See `fit_probe`.
        shrinkage: See `fit_probe`.
        strength: See `fit_probe`.

    Raises:
        MissingError: The rows lack ids or vectors.
        DataError: The log is of other rows.
        IntegrityError: The log is damaged.
    """

    def __init__(
        self,
        rows: Dataset | DatasetDict,
        references: ReferenceIndex,
        layers: Sequence[Layer],
        log: str | Path | DecidedLabels,
        *,
        columns: Mapping[str, str] | None = None,
        weight: float = WEIGHT,
        form: str = "lda",
        shrinkage: float = 0.3,
        strength: float = 0.01,
    ) -> None:
        require_number("weight", weight, above=0)
        self.rows, self.references, self.layers = rows, references, tuple(layers)
        self.log = LabelLog(Path(log)) if isinstance(log, (str, Path)) else log
        self._columns, self._weight = columns, weight
        self._fitting: dict[str, Any] = {"form": form, "shrinkage": shrinkage, "strength": strength}
        self._parts = parts_of(rows)
        self._starts = np.cumsum([0, *map(len, self._parts)])
        ids: list[str] = []
        for table in record_batches(rows, [ROW_ID], fix="embed the rows: hf-safefilter embed --help"):
            ids += table[ROW_ID].to_pylist()
        self.ids = ids
        self._place: dict[str, int] = {}
        for place, name in enumerate(ids):
            self._place.setdefault(name, place)
        given = self.log.current
        if isinstance(self.log, LabelLog) and given and not any(name in self._place for name in given):
            raise DataError(f"{self.log.path} has no label of these rows", fix="name those of these rows")
        self._examples = [reference_examples(references, layer) for layer in self.layers]
        self._width = self._examples[0].vectors.shape[1]
        self._alone = self._fitted(None, np.empty(0))
        self._scored: tuple[dict[int, bool], np.ndarray] | None = None
        self._points: dict[tuple[tuple[int, bool], ...], CurvePoint] = {}

    @property
    def answers(self) -> dict[int, Answer]:
        """Position -> the answer that counts, in the order in which they were given; of these rows alone."""
        known = self.log.current.items()
        return {self._place[name]: answer for name, answer in known if name in self._place}

    @property
    def labeled(self) -> dict[int, bool]:
        """Position -> whether it is unsafe, for the rows labelled unsafe or safe."""
        named = {place: answer.label for place, answer in self.answers.items()}
        return {place: label == UNSAFE for place, label in named.items() if label in (UNSAFE, SAFE)}

    @property
    def round(self) -> int:
        """Number of the round that the next answer belongs to, from 1."""
        return 1 + self._asked // PER_ROUND

    @property
    def left(self) -> int:
        """Answers that are left in this round."""
        return PER_ROUND - self._asked % PER_ROUND

    @property
    def _asked(self) -> int:
        return sum(answer.round > 0 for answer in self.answers.values())

    def row(self, place: int) -> dict[str, Any]:
        """What a row says: its columns without vectors."""
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        rows = self._parts[part]
        names = [name for name in rows.column_names if not name.startswith(EMBEDDING_PREFIX)]
        return dict(rows.select([place - int(self._starts[part])]).select_columns(names)[0])

    def text(self, place: int) -> str:
        """The turns of a row, as they are: from strangers, and perhaps harmful."""
        (said,) = as_conversations([self.row(place)], self._columns)
        sides = [[f"[{turn.role}] {turn.content or ''}{turn.more}" for turn in side] for side in said.sides]
        return "\n[the rejected side]\n".join("\n".join(side) for side in sides)

    def label(self, place: int, label: str, *, who: str | None = None, when: str | None = None) -> None:
        """Write an answer to the log.

        Args:
            place: Position of the row.
            label: "unsafe", "safe" or "unsure".
            who: Who answers; the name of the user if left out.
            when: Time of the answer; now if left out.
        """
        require_choice("label", label, ANSWERS)
        self._write(place, label, who, when, self.round)

    def withdraw(self, place: int, *, who: str | None = None, when: str | None = None) -> None:
        """Write to the log that the answer on a row counts no longer."""
        self._write(place, WITHDRAWN, who, when, self.round)

    def take(self, labels: Mapping[str, str], *, who: str, when: str | None = None) -> int:
        """Write labels that were made elsewhere to the log, unless it has the same ones.

        Args:
            labels: Row id -> "unsafe", "safe" or "unsure".
            who: Which file or column they are from.
            when: As of `label`.

        Returns:
            Number of labels that are of these rows.

        Raises:
            DataError: None is.
        """
        known = {name: label for name, label in labels.items() if name in self._place}
        if not known:
            raise DataError(f"{who} has no label of these rows", fix="name the file of labels by row_id, or a column")
        given = self.log.current
        for name, label in known.items():
            if name not in given or given[name].label != label:
                self._write(self._place[name], label, who, when, 0)
        return len(known)

    def next_rows(self, count: int | None = None, besides: Collection[str] = ()) -> list[int]:
        """Positions of the rows to ask for next.

        Args:
            count: How many; as many as are left in this round if left out.
            besides: Ids of rows that were asked for, though they are no labels.
        """
        asked = np.zeros(len(self.ids), bool)
        asked[list(self.answers)] = True
        asked[[self._place[name] for name in besides if name in self._place]] = True
        truth = np.full(len(self.ids), np.nan)
        for place, unsafe in self.labeled.items():
            truth[place] = unsafe
        doubt = doubts(self.scores(), truth)
        doubt[[place for place, name in enumerate(self.ids) if self._place[name] != place]] = 0.0  # copies
        short = np.argsort(np.where(asked, -1.0, -doubt), kind="stable")
        open_rows = [place for place in short.tolist() if not asked[place]][:SHORTLIST]
        places = np.array([*open_rows, *np.flatnonzero(asked).tolist()], dtype=np.int64)
        vectors = self._read(places).means()
        chosen = next_rows(doubt[places], vectors, asked[places], self.left if count is None else count)
        return places[chosen].tolist()

    def scores(self) -> np.ndarray:
        """Scores of all rows by the probe with the labels given so far, float32 (n,)."""
        labels = self.labeled
        if self._scored is None or self._scored[0] != labels:
            places, truth = self._labels()
            fitted = self._fitted(self._read(places), truth) if len(places) else self._alone
            names = self._names(self._parts[0])
            tables = record_batches(self.rows, names, fix="embed the rows at the layers of the probe")
            self._scored = labels, np.concatenate([self._rows_of(table).scores(fitted) for table in tables])
        return self._scored[1]

    def point(self, upto: int | None = None) -> CurvePoint:
        """How well the probe separates the rows labelled so far, cross-validated by request; see `CurvePoint`.

        Args:
            upto: Only the first so many labels.
        """
        key = tuple(self.labeled.items())[:upto]
        if key not in self._points:
            self._points[key] = self._measured(*self._labels(upto))
        return self._points[key]

    def curve(self) -> list[CurvePoint]:
        """A point for the end of each round; of labels that were made elsewhere after 10, 20, 40, ... and all."""
        answers = list(self.answers.values())
        used = np.cumsum([answer.label in (UNSAFE, SAFE) for answer in answers])
        ends = set()
        for number, (answer, labels) in enumerate(zip(answers, used.tolist(), strict=True), 1):
            last = number == len(answers)
            whole = answer.round > 0 and not last and answers[number].round != answer.round
            doubled = answer.round == 0 and labels % PER_ROUND == 0 and (labels // PER_ROUND).bit_count() == 1
            if labels and (last or whole or doubled):
                ends.add(labels)
        return [self.point(labels) for labels in sorted(ends)]

    def probe(self) -> Probe:
        """The probe of the references and the labels given so far; its facts have the count and digest of the log.

        Raises:
            DataError: There are not labels of both kinds.
        """
        places, truth = self._labels()
        if len(set(truth.tolist())) < 2:
            raise DataError(
                "the rows labelled so far are not of both kinds",
                found=f"{int(truth.sum())} unsafe, {int((1 - truth).sum())} safe",
                fix="label more rows",
            )
        labeled = self._selected(places, self._vectors)
        labeled = labeled.add_column("label", [UNSAFE if unsafe else SAFE for unsafe in truth])
        return fit_probe(
            self.references, self.layers, labeled=labeled, weight=self._weight, log=self.log.summary(), **self._fitting
        )

    def probe_of_references(self) -> Probe:
        """The probe of the references alone."""
        return fit_probe(self.references, self.layers, **self._fitting)

    def _measured(self, places: np.ndarray, truth: np.ndarray) -> CurvePoint:
        rows = self._read(places)
        read = np.isfinite(rows.scores(self._alone))
        rows, places, truth = rows.take(np.flatnonzero(read)), places[read], truth[read]
        said = as_conversations([self.row(place) for place in places.tolist()], self._columns)

        def without(held_out: np.ndarray) -> np.ndarray:
            kept = np.flatnonzero(~held_out)
            return rows.scores(self._fitted(rows.take(kept), truth[kept]))

        requests = [prompt_of(conversation) for conversation in said]
        return curve_point(truth, requests, without, rows.scores(self._alone))

    def _write(self, place: int, label: str, who: str | None, when: str | None, number: int) -> None:
        moment = when or datetime.now(UTC).isoformat(timespec="seconds")
        if not isinstance(self.log, LabelLog):
            raise OptionError(f"{self.log.path} holds decisions", fix="decide on the row: hf-safefilter review --help")
        self.log.append(Answer(self.ids[place], label, who or user_name(), moment, number))

    def _labels(self, upto: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Positions int (m,) and truth float (m,) of the labelled rows, in the order in which they were given."""
        labels = list(self.labeled.items())[:upto]
        return np.array([place for place, _ in labels], np.int64), np.array([unsafe for _, unsafe in labels], float)

    def _fitted(self, rows: ReadRows | None, truth: np.ndarray) -> Boundaries:
        sets = self._examples
        if rows is not None and len(truth):
            own = rows.examples(truth)
            sets = [mine.joined(more, self._weight) for mine, more in zip(self._examples, own, strict=True)]
        form = self._fitting["form"]
        return boundaries(sets, form, self._fitting["shrinkage" if form == "lda" else "strength"])

    def _names(self, part: Dataset) -> list[str]:
        return [*self._vectors, *([SPANS] if SPANS in part.column_names else [])]

    @property
    def _vectors(self) -> list[str]:
        return list(dict.fromkeys(column for layer in self.layers for column in embedding_columns(layer)))

    def _read(self, places: np.ndarray) -> ReadRows:
        table = self._selected(places, self._names(self._parts[0])).with_format("arrow")[:]
        return self._rows_of(table)

    def _rows_of(self, table: Any) -> ReadRows:
        return ReadRows.of(Batch(table), self.layers, self._width)

    def _selected(self, places: np.ndarray, names: list[str]) -> Dataset:
        """The given rows, in the given order, with the named columns."""
        from datasets import concatenate_datasets

        for part in self._parts:
            if missing := [name for name in names if name not in part.column_names]:
                raise missing_column(missing[0], part.column_names, "embed the rows at the layers of the probe")
        split = np.searchsorted(self._starts, places, side="right") - 1
        parts = [
            rows.select_columns(names).select(places[split == number] - self._starts[number])
            for number, rows in enumerate(self._parts)
        ]
        order = np.argsort(np.argsort(split, kind="stable"), kind="stable")
        return concatenate_datasets(parts).select(order)


def user_name() -> str:
    """Name of the user who runs this process; "unknown" where there is none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the user of a container may have no name
        return "unknown"
