"""merge: rows that several machines embedded, as one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Output, TrustVectors

EXAMPLE = "hf-safefilter merge shards --output embedded"


def merge(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(help="Shards, or a folder of shards.", show_default=False)],
    output: Output,
    trust_vectors: TrustVectors = False,
) -> None:
    """Join shards into one data set: each must be present once, all of one model and one data set."""
    from hf_safefilter.saved.shards import merge as join

    merged = join(folders, output, trust_vectors=trust_vectors)
    context.obj.report(
        {"output": str(output), "shards": merged.shards, "rows": merged.rows},
        ids=[str(output)],
        hint=f"hf-safefilter score {output} --method larf --references refs --output scored",
    )
