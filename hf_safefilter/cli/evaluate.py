"""evaluate: how well each score separates labelled rows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hf_safefilter.cli import completion
from hf_safefilter.cli.arguments import Folder, TrustVectors

EXAMPLE = "hf-safefilter evaluate scored --label label"


def evaluate(
    context: typer.Context,
    scored: Folder,
    label: Annotated[str, typer.Option(help="Column of labels.", autocompletion=completion.columns)],
    unsafe: Annotated[str, typer.Option(help="Value that means unsafe.")] = "unsafe",
    trust_vectors: TrustVectors = False,
) -> None:
    """Measure how well each score separates labelled rows, beside length and random, and say whether to trust it."""
    from hf_safefilter.decide.evaluate import evaluate as measure
    from hf_safefilter.decide.overlap import apart_from_references, warn_of_overlap
    from hf_safefilter.saved.saved_rows import load_rows_with_steps

    saved = load_rows_with_steps(scored, trust_vectors=trust_vectors)
    warn_of_overlap(saved.rows, saved.steps)
    evaluation = measure(apart_from_references(saved.rows, saved.steps), label, unsafe=unsafe, columns=saved.mapping)
    context.obj.table("How well each score separates the labels", evaluation.table())
    for sentence in evaluation.sentences():
        context.obj.message(sentence)
    trusted = [item for item in evaluation.separations if item.verdict.trusted]
    hint = f"hf-safefilter label {scored} --output labelled"
    if trusted:
        best = max(trusted, key=lambda item: item.auroc).score
        hint = f"hf-safefilter select {scored} --by {best} --drop-fraction 0.02 --output decided"
    context.obj.report(
        {"evaluation": evaluation.to_json()}, ids=[json.dumps(line) for line in evaluation.table()], hint=hint
    )
