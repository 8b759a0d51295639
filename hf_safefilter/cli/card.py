"""card: the publishable folder of a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Anyway, Folder, License, Output, Source, TrustVectors

EXAMPLE = "hf-safefilter card decided --license cc-by-4.0 --source tatsu-lab/alpaca --output out"


def card(
    context: typer.Context,
    decided: Folder,
    license: License,
    source: Source,
    output: Output,
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
    """Write the publishable folder of a decision: kept rows, list of dropped rows, card, provenance and plots."""
    from hf_safefilter.effect import read_card_part
    from hf_safefilter.publish.folder import write_folder
    from hf_safefilter.publish.gather import gather
    from hf_safefilter.saved.decision import read_decision

    decision = read_decision(decided, trust_vectors=trust_vectors)
    saved, is_safe, anyway = decision.saved, decision.is_safe, anyway or decision.anyway
    provenance = gather(
        saved.rows, is_safe, license=license, source=source, source_revision=saved.revision, steps=saved.steps,
        generator_model=generator_model,
        effect=read_card_part(effect) if effect is not None else None, verdict=decision.verdict, anyway=anyway,
        trusted_vectors=saved.trusted, name_reviewers=name_reviewers,
        additions=decision.additions,
    )  # fmt: skip
    write_folder(
        output, saved.rows, is_safe, provenance, include_text=include_text, additions=decision.additions,
        recheck=saved.require_unchanged,
    )  # fmt: skip
    verdict = provenance.judged()
    assert verdict is not None  # `gather` gives one
    context.obj.judged(
        verdict,
        {"output": str(output), "card": str(output / "README.md")},
        anyway=anyway,
        ids=[str(output)],
        hint=f"hf-safefilter push {output} me/my-set",
        instead=f"hf-safefilter evaluate {decided / 'scored'} --label COLUMN",
    )
