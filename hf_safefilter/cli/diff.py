"""diff: two selections side by side."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from hf_safefilter.cli.arguments import TrustVectors
from hf_safefilter.storage.scratch import scratch_folder

EXAMPLE = "hf-safefilter diff decided decided-again"

_SHOWN = 20  # rows of a table in the terminal
_LONGEST = 60  # characters of a fact in the terminal


def diff(
    context: typer.Context,
    before: Annotated[str, typer.Argument(help="Folder of select, card or run, or Hub repository.")],
    after: Annotated[str, typer.Argument(help="The same of another selection.")],
    revision: Annotated[str | None, typer.Option(help="Revision of the first repository.")] = None,
    to_revision: Annotated[str | None, typer.Option(help="Revision of the second repository.")] = None,
    trust_vectors: TrustVectors = False,
) -> None:
    """Compare two selections: the rows that come in and go out, by id, and what was done otherwise.

    Rows are matched by what they say. A row of which turns were masked says something else than before.
    """
    from hf_safefilter.pipeline.difference import Difference, Selection
    from hf_safefilter.pipeline.published import open_published

    sides = []
    for name, commit in ((before, revision), (after, to_revision)):
        with scratch_folder() as scratch:
            folder = open_published(name, commit, scratch)
            sides.append(Selection.open(folder, trust_vectors=trust_vectors))
    difference = Difference.between(*sides)
    facts = [{"": name, "before": _cut(old), "after": _cut(new)} for name, (old, new) in difference.facts.items()]
    context.obj.table("Done otherwise", facts)
    moves = [move.to_json() for move in difference.moves]
    context.obj.table(
        f"Rows ({min(len(moves), _SHOWN)} of {len(moves)})",
        [{"row_id": move["row_id"], "split": move["split"], "change": move["change"], "score": _score(move),
          "dropped because": _reason(move)} for move in moves[:_SHOWN]],
    )  # fmt: skip
    context.obj.report(
        {"difference": difference.sentence(), **difference.counts(), "alike": difference.alike,
         "facts": {name: list(pair) for name, pair in difference.facts.items()}, "rows": moves},
        ids=[json.dumps(move) for move in moves],
    )  # fmt: skip


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _score(move: dict[str, Any]) -> str:
    scores = [side["score"] for side in (move["after"], move["before"]) if side and side["score"] is not None]
    return f"{scores[0]:.4g}" if scores else ""


def _reason(move: dict[str, Any]) -> str:
    return next((side["reason"] for side in (move["after"], move["before"]) if side and side["reason"]), "")
