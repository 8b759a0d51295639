"""verify: what a stranger can check of a published data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_safefilter.cli.output import NOT_TRUSTED
from hf_safefilter.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

EXAMPLE = "hf-safefilter verify me/alpaca-safe --source tatsu-lab/alpaca"


def verify(
    context: typer.Context,
    published: Annotated[str, typer.Argument(help="Folder or Hub repository.", show_default=False)],
    source: Annotated[
        str | None, typer.Option(help="The rows that were filtered; those that the record names, if left out.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the repository.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows that are read and scored again.")] = 64,
    every: Annotated[bool, typer.Option("--every", help="Read and score all rows again.")] = False,
) -> None:
    """Check files, card, decision, rows and scores of a published data set: pass, fail or cannot say, and why.

    The exit code is 3 if a check fails.
    """
    from hf_safefilter.pipeline.published import open_published
    from hf_safefilter.pipeline.verification import Verification

    with scratch_folder() as scratch:
        folder = open_published(published, revision, scratch)
        rows = _source(folder, source)
        lines = Verification(
            folder, rows, repository=published if folder == scratch else None, sample=None if every else sample
        ).lines()
    records = [line.to_json() for line in lines]
    failed = [line.check for line in lines if line.result == "fail"]
    context.obj.table(published, records)
    context.obj.report({"lines": records, "failed": failed}, ids=[json.dumps(record) for record in records])
    if failed:
        raise typer.Exit(NOT_TRUSTED)


def _source(folder: Path, named: str | None) -> Dataset | DatasetDict | None:
    """The rows that were filtered: those that are named, or those of the Hub at the recorded commit."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.errors import SafefilterError

    if named is not None:
        return load_rows(named).rows
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["source"]
        return load_rows(str(record["name"]), revision=str(record["revision"])).rows
    except (OSError, ValueError, KeyError, TypeError, SafefilterError):
        return None
