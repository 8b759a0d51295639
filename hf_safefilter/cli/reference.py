"""reference: audit, build, show and publish reference sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.checks import require_choice
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
from hf_safefilter.cli.output import NOT_TRUSTED
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions

if TYPE_CHECKING:
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.references.audit import Audit

Benign = Annotated[
    str,
    typer.Option(help="Ordinary rows for the safe side: file, folder or Hub id; starter: those that ship; or none."),
]

reference = typer.Typer(help="Audit, build, show and publish reference sets.", no_args_is_help=True)


@reference.command(epilog="Example: hf-safefilter reference starter --model toy --layers 3,4 --output refs")
@reads_a_model()
def starter(
    context: typer.Context,
    reading: ReadingOptions,
    layers: Layers,
    output: Output,
    trait: Annotated[
        str, typer.Option(help="What the unsafe side shows: harm, sycophancy, made_up_facts or obedience.")
    ] = "harm",
) -> None:
    """Build a reference set from the small sets that ship with this package.

    The end of the prompt is read too, which the method shift compares with.
    """
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.shift import at_prompt_too
    from hf_safefilter.starter import TRAITS

    require_choice("trait", trait, ("harm", *TRAITS))
    step = EmbedLayers.of(at_prompt_too(reading, ["shift"]), layers_of(layers))
    _save(context, ReferenceIndex.starter(step, trait), output, "larf" if trait == "harm" else "shift")


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
    benign: Benign = "starter",
    column: Column = None,
) -> None:
    """Build a reference set from unsafe and safe rows, and ordinary ones, which ship with this package.

    Without ordinary rows on the safe side, what only sounds unlike a refusal is taken for harm. The licence and source
    of those that ship are added to the ones that you give. The end of the prompt is read too, for the method shift.
    """
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.references.open import build_references
    from hf_safefilter.scores.shift import at_prompt_too

    step = EmbedLayers.of(at_prompt_too(reading, ["shift"]), layers_of(layers), pairs_of(column, "--column"))
    index = build_references(unsafe, safe, _named(benign), step, license=license, source=source)
    _save(context, index, output)


@reference.command(epilog="Example: hf-safefilter reference audit --unsafe unsafe.jsonl --safe safe.jsonl")
def audit(
    context: typer.Context,
    references: Annotated[
        str | None,
        typer.Argument(
            help="Folder or Hub id of a reference set, or starter for the rows that ship.", show_default=False
        ),
    ] = None,
    unsafe: Annotated[str | None, typer.Option(help="Harmful requests with answers: file, folder or Hub id.")] = None,
    safe: Annotated[str | None, typer.Option(help="The same requests with refusals: file, folder or Hub id.")] = None,
    benign: Benign = "starter",
    column: Column = None,
) -> None:
    """Say what is wrong with reference rows, before a model is loaded.

    Length or form that gives a side away, repeats, too few rows, one topic, one language, rows that cannot be read. The
    exit code is 3 if something is serious: scores that go by these rows are not to be trusted.
    """
    result = _audit(references, unsafe, safe, benign, pairs_of(column, "--column"))
    printer = context.obj
    printer.table(
        f"Audit of {', '.join(f'{count} {kind}' for kind, count in result.counts.items())} rows", result.table()
    )
    for sentence in result.sentences():
        printer.message(sentence)
    printer.report(
        result.to_json(),
        ids=[f"{check.severity} {check.check}: {check.rows}" for check in result.findings],
        hint=None if result.serious else "hf-safefilter reference build --help",
    )
    if result.serious:
        raise typer.Exit(NOT_TRUSTED)


def _audit(
    references: str | None, unsafe: str | None, safe: str | None, benign: str, columns: dict[str, str] | None
) -> Audit:
    from hf_safefilter.references.audit import audit_index, audit_references
    from hf_safefilter.references.open import STARTER, open_references, ordinary_rows, rows_at
    from hf_safefilter.starter import starter_rows

    if (references is None) == (unsafe is None) or (unsafe is None) != (safe is None):
        raise OptionError(
            "an audit looks at a reference set, or at rows of both sides",
            fix="name a reference set, or --unsafe FILE and --safe FILE",
        )
    if references == STARTER:
        return audit_references(starter_rows("unsafe"), starter_rows("safe"), starter_rows("benign"))
    if references is not None:
        return audit_index(open_references(references))
    assert unsafe is not None and safe is not None  # checked above
    return audit_references(rows_at(unsafe), rows_at(safe), ordinary_rows(_named(benign)), columns=columns)


def _named(benign: str) -> str | None:
    return None if benign == "none" else benign


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
) -> None:
    """Publish a reference set, including the texts of its rows; --yes publishes it without a question."""
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.storage.hub_commit import logged_in_as

    user = logged_in_as(repo)
    index = ReferenceIndex.load(references)
    for name, value in index.summary().items():
        context.obj.message(f"{name}: {value}")
    context.obj.confirm(
        f"Push {references} with its texts to {repo} ({'public' if public else 'private'} if new), as {user}?"
    )
    index.push(repo, private=not public)
    context.obj.report({"repo": repo, "digest": index.digest}, ids=[repo])


def _save(context: typer.Context, index: ReferenceIndex, output: Path, method: str = "larf") -> None:
    index.save(output)
    _report(context, index.summary(), str(output), method)


def _report(context: typer.Context, summary: dict[str, Any], references: str, method: str = "larf") -> None:
    facts = {"references": references} | summary
    context.obj.report(
        {
            name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            for name, value in facts.items()
        },
        ids=[summary["digest"]],
        hint=f"hf-safefilter score embedded --method {method} --references {references} --output scored",
    )
