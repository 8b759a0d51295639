"""label: ask for the labels that change the score most, and score the rows again."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.checks import suggesting
from hf_safefilter.cli.arguments import Folder, Output, TrustVectors
from hf_safefilter.errors import DataError, OptionError

if TYPE_CHECKING:
    from hf_safefilter.cli.output import Printer
    from hf_safefilter.labeling import LabelRounds
    from hf_safefilter.saved.saved_rows import Saved

EXAMPLE = "hf-safefilter label scored --output labelled"

LOG = "labels.jsonl"

_KEYS = "u unsafe, s safe, ? unsure, t show the text, b back, q quit"
_LABELS = {"u": "unsafe", "s": "safe", "?": "unsure"}


def label(
    context: typer.Context,
    scored: Folder,
    output: Output,
    references: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a reference set; that of the rows' score if left out.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Ask nothing: a .jsonl file with row_id and label, or a column of the rows."),
    ] = None,
    unsafe: Annotated[str, typer.Option(help="Label that means unsafe, with --from.")] = "unsafe",
    rounds: Annotated[int | None, typer.Option(min=1, help="Stop after this many rounds of ten.")] = None,
    who: Annotated[str | None, typer.Option(help="Who answers, for the log; the name of the user if left out.")] = None,
    trust_vectors: TrustVectors = False,
) -> None:
    """Ask for the labels of the rows that change the score most, refit the probe, and score all rows again.

    Each answer is in labels.jsonl in the output folder before the next question: the same command goes on after a stop.
    The text of a row is hidden until you ask for it.
    """
    from hf_safefilter.labeling.open_rounds import references_of_score, rounds_on
    from hf_safefilter.references.open import open_references
    from hf_safefilter.saved.saved_rows import load_rows_with_steps
    from hf_safefilter.storage.atomic import require_replaceable

    require_replaceable(output, LOG)
    saved = load_rows_with_steps(scored, trust_vectors=trust_vectors)
    index = references_of_score(saved) if references is None else open_references(references)
    session = rounds_on(saved, output / LOG, index)
    if source is not None:
        session.take(_labels(source, unsafe, saved), who=who or _shown(source))
    else:
        _Dialogue(session, context.obj, who).run(rounds)
    _finish(context.obj, session, saved, output, asked=source is None)


def _labels(source: str, unsafe: str, saved: Saved) -> dict[str, str]:
    """Row id -> label, from a file or a column."""
    from hf_safefilter.columns import ROW_ID
    from hf_safefilter.data.labels import names_of, same_label
    from hf_safefilter.data.splits import column_names, parts_of
    from hf_safefilter.labeling.label_log import SAFE, UNSAFE, UNSURE, WITHDRAWN

    names: list[str] = []
    pairs: list[tuple[str, Any]] = []
    if Path(source).is_file():
        pairs = _pairs_of_file(Path(source))
    else:
        for part in parts_of(saved.rows):
            if source not in column_names(part):
                columns = column_names(part)
                fix = suggesting(source, columns, "name one of both")
                raise OptionError(f"{source!r} is neither a file nor a column", found=", ".join(columns), fix=fix)
            names = names or names_of(part, source)
            pairs += zip(part[ROW_ID], part[source], strict=True)
    labels: dict[str, str] = {}
    for name, cell in pairs:
        labels.pop(name, None)  # of a log, the last answer on a row counts
        if cell is not None and cell != WITHDRAWN:
            labels[name] = UNSURE if cell == UNSURE else UNSAFE if same_label(cell, unsafe, names) else SAFE
    if not {UNSAFE, SAFE} <= set(labels.values()):
        raise DataError(
            f"{_shown(source)} must hold labels of both kinds, and {unsafe!r} must be one of them",
            found=", ".join(sorted({str(cell) for _, cell in pairs})[:8]) or "no labels",
            fix="state the value that means unsafe: `unsafe=...`",
        )
    return labels


def _pairs_of_file(path: Path) -> list[tuple[str, Any]]:
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
            pairs.append((str(body["row_id"]), body["label"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"line {number} of {path.name} has no row_id and label", fix="correct the line") from error
    return pairs


def _shown(source: str) -> str:
    return Path(source).name if Path(source).is_file() else f"column {source!r}"


class _Dialogue:
    """Questions and answers, by single keys: from a terminal as they are pressed, else from the input as it comes."""

    def __init__(self, session: LabelRounds, printer: Printer, who: str | None) -> None:
        self._session, self._say, self._who = session, printer.note, who

    def run(self, most: int | None) -> None:
        """Ask until the person quits, nothing is left in doubt, or so many rounds are done."""
        last = None if most is None else self._session.round + most
        self._say(_KEYS)
        while last is None or self._session.round < last:
            batch = self._session.next_rows()
            if not batch:
                self._say("no row is left to ask for")
                return
            self._say(f"round {self._session.round}")
            if not self._ask(batch):
                return
            self._say(self._session.point().sentence())

    def _ask(self, batch: list[int]) -> bool:
        """The answers on a batch; False if the person quits."""
        at = 0
        scores = self._session.scores()[batch]
        while at < len(batch):
            place = batch[at]
            self._say(f"row {at + 1} of {len(batch)}, {self._session.ids[place]}, score {scores[at]:.2f}: text hidden")
            key = self._answer(place)
            if key == "q":
                return False
            if key == "b" and at:
                at -= 1
                self._session.withdraw(batch[at], who=self._who)
            elif key == "b":
                self._say("this is the first row of the round")
            else:
                self._session.label(place, _LABELS[key], who=self._who)
                at += 1
        return True

    def _answer(self, place: int) -> str:
        """The first key that answers; what else is pressed shows the text, or the keys."""
        while (key := _key()) not in (*_LABELS, "b", "q"):
            if key == "t":
                self._say(visible(self._session.text(place)))
            else:
                self._say(_KEYS)
        return key


def _key() -> str:
    """The next key; "q" where the input ends."""
    if sys.stdin.isatty():
        return typer.getchar().lower()
    while (key := sys.stdin.read(1)).isspace():
        pass
    return key.lower() or "q"


def visible(text: str) -> str:
    """The text without what could steer a terminal: of the characters that are not printed, only line breaks are kept.

    These are control characters, marks that turn the direction of the text, and whatever else Unicode calls so.
    """
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join("".join(sign for sign in line if unicodedata.category(sign)[0] != "C") for line in lines)


def _finish(printer: Printer, session: LabelRounds, saved: Saved, output: Path, *, asked: bool) -> None:
    """Write the rescored rows and the curve, and report; `asked`: the rows were chosen here, as the doubtful ones."""
    from hf_safefilter.labeling.curve import OF_DOUBTFUL_ROWS, OF_LABELLED_ROWS, draw_curve
    from hf_safefilter.labeling.rescored import rescored
    from hf_safefilter.saved.saved_rows import SCORED, save_again
    from hf_safefilter.scores.probe import ProbeScore
    from hf_safefilter.storage.atomic import atomic_text

    facts: dict[str, Any] = {"log": str(output / LOG), "labels": session.log.summary()}
    if len(set(session.labeled.values())) < 2:
        printer.note("labels of both kinds are needed to score the rows again; the same command goes on", warning=True)
        printer.report(facts)
        return
    points = session.curve()
    atomic_text(output / "curve.json", json.dumps([point.to_json() for point in points], indent=1) + "\n")
    rows = OF_DOUBTFUL_ROWS if asked else OF_LABELLED_ROWS
    draw_curve(points, output / "curve", rows)
    printer.table(f"AUROC {rows}", [_line(point.to_json()) for point in points])
    taught = session.probe()
    again = rescored(saved, probe=taught)
    save_again(again, output / SCORED)
    step = next(step for step in again.steps if isinstance(step, ProbeScore) and step.probe == taught.digest)
    facts |= {"output": str(output / SCORED), "column": step.produces()[0], "probe": step.probe}
    printer.report(
        facts | {"curve": [point.to_json() for point in points]},
        ids=[str(output / SCORED)],
        hint=f"hf-safefilter select {output / SCORED} --by {step.produces()[0]} --drop-fraction 0.02 --output decided",
    )


def _line(point: Mapping[str, Any]) -> dict[str, Any]:
    auroc = point["auroc"] or {"value": None, "low": None, "high": None}
    figures = {"AUROC": auroc["value"], "low": auroc["low"], "high": auroc["high"], "references": point["references"]}
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    return {"labels": point["labels"], "unsafe": point["unsafe"], **rounded}
