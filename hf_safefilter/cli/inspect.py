"""inspect: the rows around the threshold and the most dangerous ones, each with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.arguments import Folder, ScoreColumn, TrustVectors
from hf_safefilter.data.splits import splits_of
from hf_safefilter.errors import DataError
from hf_safefilter.errors.redaction import shown as printable
from hf_safefilter.pipeline.stored_decision import decision_in

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

EXAMPLE = "hf-safefilter inspect decided --near 10 --html suspects.html"

_LONGEST = 400  # characters of a cell in the terminal


def inspect(
    context: typer.Context,
    scored: Folder,
    by: ScoreColumn = None,
    drop_fraction: Annotated[float | None, typer.Option(help="Drop this share of the scored rows.")] = None,
    drop_count: Annotated[int | None, typer.Option(help="Drop this many rows.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop rows that score this or more.")] = None,
    near: Annotated[int, typer.Option(min=0, help="Rows on each side of the threshold.")] = 5,
    top: Annotated[int, typer.Option(min=0, help="Rows with the highest scores.")] = 5,
    text: Annotated[bool, typer.Option("--text", help="Show what the rows say; it may be harmful.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page here.")] = None,
    trust_vectors: TrustVectors = False,
) -> None:
    """Show the rows near the threshold and those with the highest scores: score, span, and the reason in words."""
    from hf_safefilter.decide.explanations import explain
    from hf_safefilter.decide.suspects import suspects
    from hf_safefilter.decide.thresholds import numbers_of
    from hf_safefilter.publish.suspects_page import Suspect, page

    saved, is_safe = decision_in(scored, by, {"drop_fraction": drop_fraction, "drop_count": drop_count,
                                              "threshold": threshold}, trust_vectors)  # fmt: skip
    scores = numbers_of(saved.rows, is_safe.column)
    groups = suspects(scores, is_safe.threshold, near, top)
    chosen = [row for rows in groups.values() for row in rows]
    if not chosen:
        raise DataError("there is no row to show", found=f"{len(scores)} rows", fix="raise --near or --top")
    rows = _picked(saved.rows, chosen)
    explanations = explain(rows, is_safe.column, saved.steps)
    texts = list(map(printable, _texts(rows, saved.mapping))) if text else [""] * len(chosen)
    names = [name for name, group in groups.items() for _ in group]
    places = [_place(saved.rows, row) for row in chosen]
    shown = [
        Suspect(group, row, explanation, said, split)
        for group, (split, row), explanation, said in zip(names, places, explanations, texts, strict=True)
    ]
    if html is not None:
        html.write_text(page(shown, scores, is_safe), encoding="utf-8")
    for name, group in groups.items():
        context.obj.table(name, [_line(suspect, text) for suspect in shown if suspect.group == name and group])
    facts: dict[str, Any] = {"column": is_safe.column, "threshold": is_safe.threshold, "rows": len(scores)}
    if html is not None:
        facts["html"] = str(html)
    records = [suspect.to_json() for suspect in shown]
    hint = f"hf-safefilter inspect {scored} --text shows what these rows say" if not text else None
    context.obj.report(facts | {"suspects": records}, ids=[json.dumps(record) for record in records], hint=hint)


def _picked(rows: Dataset | DatasetDict, chosen: list[int]) -> Dataset:
    """Rows by their number among those of all splits."""
    from datasets import Dataset, concatenate_datasets

    every = rows if isinstance(rows, Dataset) else concatenate_datasets(list(rows.values()))
    return every.select(chosen)


def _place(rows: Dataset | DatasetDict, row: int) -> tuple[str, int]:
    """Split, and number in it, of a row by its number among those of all splits."""
    for name, part in splits_of(rows).items():
        if row < len(part):
            return name, row
        row -= len(part)
    raise IndexError(row)


def _texts(rows: Dataset, columns: dict[str, str] | None) -> list[str]:
    from hf_safefilter.data.conversations import as_conversations

    return [
        "\n\n".join(f"{turn.role}: {turn.content or turn.more}" for turn in conversation.messages)
        for conversation in as_conversations(rows, columns)
    ]


def _line(suspect: Any, text: bool) -> dict[str, Any]:
    line = {"row": suspect.place, "score": suspect.explanation.score, "why": suspect.explanation.words}
    return line | ({"text": suspect.text[:_LONGEST]} if text else {})
