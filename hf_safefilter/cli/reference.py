"""reference: build, show and publish reference sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.arguments import (
    Column,
    Folder,
    Layers,
    License,
    Output,
    Source,
    layers_of,
    pairs_of,
    reads_a_model,
)
from hf_safefilter.model.reading_options import ReadingOptions

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex

reference = typer.Typer(help="Build, show and publish reference sets.", no_args_is_help=True)


@reference.command(epilog="Example: hf-safefilter reference starter --model toy --layers 3,4 --output refs")
@reads_a_model()
def starter(
    context: typer.Context,
    reading: ReadingOptions,
    layers: Layers,
    output: Output,
) -> None:
    """Build a reference set from the small sets that ship with this package."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.references import ReferenceIndex

    step = EmbedLayers.of(reading, layers_of(layers))
    _save(context, ReferenceIndex.starter(step), output)


@reference.command(
    epilog="Example: hf-safefilter reference build unsafe.jsonl safe.jsonl --model toy --layers 4 "
    "--license mit --source 'our red team' --output refs"
)
@reads_a_model()
def build(
    context: typer.Context,
    unsafe: Annotated[str, typer.Argument(help="Harmful requests with answers: file, folder or Hub id.")],
    safe: Annotated[str, typer.Argument(help="The same requests with refusals: file, folder or Hub id.")],
    reading: ReadingOptions,
    layers: Layers,
    license: License,
    source: Source,
    output: Output,
    column: Column = None,
) -> None:
    """Build a reference set from unsafe and safe rows."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.references import ReferenceIndex

    step = EmbedLayers.of(reading, layers_of(layers), pairs_of(column, "--column"))
    index = ReferenceIndex.build(load_rows(unsafe).rows, load_rows(safe).rows, step, license=license, source=source)
    _save(context, index, output)


@reference.command(epilog="Example: hf-safefilter reference show refs")
def show(context: typer.Context, references: Annotated[str, typer.Argument(help="Folder or Hub id.")]) -> None:
    """Show facts about a reference set, but no text of its rows."""
    from hf_safefilter.references.open import open_references

    _report(context, open_references(references).summary(), str(references))


@reference.command(epilog="Example: hf-safefilter reference push refs me/my-references --yes")
def push(
    context: typer.Context,
    references: Folder,
    repo: Annotated[str, typer.Argument(help="Hub id to push to.")],
    public: Annotated[bool, typer.Option(help="Make a new repository public.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Push without asking.")] = False,
) -> None:
    """Publish a reference set, including the texts of its rows."""
    from hf_safefilter.references import ReferenceIndex

    index = ReferenceIndex.load(references)
    if not yes:
        typer.confirm(f"Push {references} with its texts to {repo}?", abort=True, err=True)
    index.push(repo, private=not public)
    context.obj.report({"repo": repo, "digest": index.digest}, ids=[repo])


def _save(context: typer.Context, index: ReferenceIndex, output: Path) -> None:
    index.save(output)
    _report(context, index.summary(), str(output))


def _report(context: typer.Context, summary: dict[str, Any], references: str) -> None:
    facts = {"references": references} | summary
    context.obj.report(
        {
            name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            for name, value in facts.items()
        },
        ids=[summary["digest"]],
        hint=f"hf-safefilter score embedded --method larf --references {references} --output scored",
    )
