"""card: the publishable folder of a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Anyway, License, Output, ScoreColumn, Source, TrustVectors

EXAMPLE = "hf-safefilter card decided --license cc-by-4.0 --source tatsu-lab/alpaca --output out"


def card(
    context: typer.Context,
    decided: Annotated[Path, typer.Argument(help="Folder written by select; or scored rows.", show_default=False)],
    license: License,
    source: Source,
    output: Output,
    by: ScoreColumn = None,
    drop_fraction: Annotated[float | None, typer.Option(help="Of scored rows, drop this share.")] = None,
    drop_count: Annotated[int | None, typer.Option(help="Of scored rows, drop this many.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Of scored rows, drop those that score this or more.")] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="With scored rows, what people decided on single ones; see review.")
    ] = None,
    generator_model: Annotated[
        str | None, typer.Option(help='Hub id of the model that wrote the responses, or "people".')
    ] = None,
    effect: Annotated[Path | None, typer.Option(help="Folder that effect has written for this decision.")] = None,
    include_text: Annotated[bool, typer.Option(help="Put the text of dropped rows into dropped.parquet.")] = False,
    name_reviewers: Annotated[
        bool, typer.Option(help="Name the people who decided on single rows, not their number alone.")
    ] = False,
    anyway: Anyway = False,
    trust_vectors: TrustVectors = False,
) -> None:
    """Write the publishable folder of a decision: kept rows, list of dropped rows, card, provenance and plots.

    The decision is the one of select, or is made here of scored rows, as the page of review names it.
    """
    from hf_safefilter.effect import read_card_part
    from hf_safefilter.pipeline.stored_decision import decision_in
    from hf_safefilter.publish.folder import write_folder
    from hf_safefilter.publish.gather import gather
    from hf_safefilter.saved.decision import DECISION, read_decision
    from hf_safefilter.saved.saved_rows import SCORED, TRAIL

    ways = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold}
    verdict = additions = None
    holds_scores = (decided / TRAIL).is_file() and not (decided / DECISION).is_file()
    if not holds_scores and all(value is None for value in (by, decisions, *ways.values())):
        decision = read_decision(decided, trust_vectors=trust_vectors)
        saved, is_safe, anyway = decision.saved, decision.is_safe, anyway or decision.anyway
        verdict, additions, scored = decision.verdict, decision.additions, decided / SCORED
    else:
        saved, is_safe = decision_in(decided, by, ways, trust_vectors, decisions)
        scored = decided
    provenance = gather(
        saved.rows, is_safe, license=license, source=source, source_revision=saved.revision, steps=saved.steps,
        generator_model=generator_model,
        effect=read_card_part(effect) if effect is not None else None, verdict=verdict, anyway=anyway,
        trusted_vectors=saved.trusted, name_reviewers=name_reviewers, additions=additions,
    )  # fmt: skip
    write_folder(
        output, saved.rows, is_safe, provenance, include_text=include_text, additions=additions,
        recheck=saved.require_unchanged,
    )  # fmt: skip
    judged = provenance.judged()
    assert judged is not None  # `gather` gives one
    context.obj.judged(
        judged,
        {"output": str(output), "card": str(output / "README.md")},
        anyway=anyway,
        ids=[str(output)],
        hint=f"hf-safefilter push {output} me/my-set",
        instead=f"hf-safefilter evaluate {scored} --label COLUMN",
    )
