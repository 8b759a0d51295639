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
    from hf_safefilter.scores.probe import ProbeScore

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
    from hf_safefilter.saved.saved_rows import load_rows_with_steps
    from hf_safefilter.storage.atomic import require_replaceable

    require_replaceable(output, LOG)
    saved = load_rows_with_steps(scored, trust_vectors=trust_vectors)
    session = _rounds(saved, references, output / LOG)
    if source is not None:
        session.take(_labels(source, unsafe, saved), who=who or _shown(source))
    else:
        _Dialogue(session, context.obj, who).run(rounds)
    _finish(context.obj, session, saved, output)


def _rounds(saved: Saved, named: str | None, log: Path) -> LabelRounds:
    """The rounds on the rows: with the references and the options of their score, if it is a probe."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.labeling import LabelRounds
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.references.open import open_references, require_same_reading
    from hf_safefilter.scores.base import ReferenceScore
    from hf_safefilter.scores.probe import Probe, ProbeScore

    reader = next((step for step in saved.steps if isinstance(step, EmbedLayers)), None)
    if reader is None:
        raise OptionError("the rows hold no embeddings", fix="start with: hf-safefilter embed --help")
    probes = [step for step in saved.steps if isinstance(step, ProbeScore)]
    others = [step for step in saved.steps if isinstance(step, ReferenceScore)]
    digests = [step.references for step in probes] + [step.references_digest for step in others]
    if named is None and not digests:
        raise OptionError("no score of these rows has references", fix="name them: `references=...`")
    index = open_references(named) if named is not None else ReferenceIndex.of(digests[0])
    require_same_reading(index, reader)
    options: dict[str, Any] = {}
    layers = tuple(layer for layer in reader.layers if layer in index.layers)
    if probes:
        facts = Probe.of(probes[0].probe).facts
        layers = tuple(facts["layers"])
        options = {name: facts[name] for name in ("form", "shrinkage", "strength")}
    if not layers:
        raise OptionError("rows and references have no layer in common", fix="build the references with these layers")
    return LabelRounds(saved.rows, index, layers, log, columns=saved.mapping, **options)


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


def _finish(printer: Printer, session: LabelRounds, saved: Saved, output: Path) -> None:
    """Write the rescored rows and the curve, and report."""
    from hf_safefilter.labeling.curve import OF_DOUBTFUL_ROWS, draw_curve
    from hf_safefilter.scores.probe import ProbeScore
    from hf_safefilter.storage.atomic import atomic_text

    facts: dict[str, Any] = {"log": str(output / LOG), "labels": session.log.summary()}
    if len(set(session.labeled.values())) < 2:
        printer.note("labels of both kinds are needed to score the rows again; the same command goes on", warning=True)
        printer.report(facts)
        return
    points = session.curve()
    atomic_text(output / "curve.json", json.dumps([point.to_json() for point in points], indent=1) + "\n")
    draw_curve(points, output / "curve")
    printer.table(f"AUROC {OF_DOUBTFUL_ROWS}", [_line(point.to_json()) for point in points])
    step = ProbeScore(session.probe())
    _write_rescored(saved, step, output / "scored")
    facts |= {"output": str(output / "scored"), "column": step.produces()[0], "probe": step.probe}
    printer.report(
        facts | {"curve": [point.to_json() for point in points]},
        ids=[str(output / "scored")],
        hint=f"hf-safefilter select {output / 'scored'} --by {step.produces()[0]} --drop-fraction 0.02 "
        "--output decided",
    )


def _write_rescored(saved: Saved, step: ProbeScore, folder: Path) -> None:
    """The rows with the columns of `step` in place of an earlier probe's, and without ranks that went by that one."""
    from hf_safefilter.data.splits import column_names, each_split
    from hf_safefilter.engine.local import score_rows
    from hf_safefilter.saved.saved_rows import save_rows
    from hf_safefilter.scores.probe import ProbeScore

    probes = [known for known in saved.steps if isinstance(known, ProbeScore)]
    replaced = {column for probe in probes for column in probe.produces()}
    earlier = [known for known in saved.steps if known in probes or replaced & set(known.needs())]
    old = {column for known in earlier for column in known.produces()}
    rows = each_split(saved.rows, lambda part: part.remove_columns([c for c in column_names(part) if c in old]))
    steps = [*(known for known in saved.steps if known not in earlier), step]
    save_rows(
        score_rows(rows, step), folder, steps, name=saved.name, revision=saved.revision, trusted=saved.trusted,
        recheck=saved.require_unchanged,
    )  # fmt: skip


def _line(point: Mapping[str, Any]) -> dict[str, Any]:
    auroc = point["auroc"] or {"value": None, "low": None, "high": None}
    figures = {"AUROC": auroc["value"], "low": auroc["low"], "high": auroc["high"], "references": point["references"]}
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    return {"labels": point["labels"], "unsafe": point["unsafe"], **rounded}
