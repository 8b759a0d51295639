"""merge: what many machines embedded, as one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Output

EXAMPLE = "hf-safefilter merge shards --output embedded"


def merge(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(help="Shards, or a folder of shards.", show_default=False)],
    output: Output,
) -> None:
    """Put shards together: all must be there, once, of one model and one data set."""
    from hf_safefilter.saved.shards import merge as join

    done = join(folders, output)
    context.obj.report(
        {"output": str(output), "shards": done.shards, "rows": done.rows},
        ids=[str(output)],
        hint=f"hf-safefilter score {output} --method larf --references refs --output scored",
    )
