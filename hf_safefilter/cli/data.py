"""embed, reference, score: from rows to score columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.options import (
    Attn,
    Column,
    Device,
    Dtype,
    Folder,
    Layers,
    License,
    MaxLength,
    Model,
    Output,
    Position,
    Revision,
    Rows,
    Source,
    Split,
    Template,
    layers_of,
    pairs_of,
    values_of,
)
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.trail import Saved

reference = typer.Typer(help="Make, look at and publish reference sets.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command(epilog="Example: hf-safefilter embed rows.jsonl --model toy --layers 3,4 --output embedded")(embed)
    app.command(
        epilog="Example: hf-safefilter score embedded --method larf --layer 4 --references refs --output scored"
    )(score)
    app.add_typer(reference, name="reference")


def embed(
    context: typer.Context,
    rows: Rows,
    model: Model,
    layers: Layers,
    output: Output,
    revision: Revision = None,
    dtype: Dtype = "auto",
    position: Position = "last",
    max_length: MaxLength = None,
    device: Device = None,
    attn: Attn = "auto",
    chat_template: Template = None,
    column: Column = None,
    split: Split = None,
    shard: Annotated[int | None, typer.Option(help="Only this part of the rows, counted from 0.")] = None,
    num_shards: Annotated[int | None, typer.Option(help="Into how many parts the rows are split.")] = None,
    num_proc: Annotated[int, typer.Option(help="Processes to spawn on this machine: one a GPU.")] = 1,
) -> None:
    """Read chosen layers of a model for every row and write a `save_to_disk` folder.

    With --shard and --num-shards many machines do it together: each writes its part under --output, `merge` joins all.
    A job that was killed goes on where it was: run the same command again.
    """
    from hf_safefilter.artifacts import require_replaceable
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.inputs import load_rows
    from hf_safefilter.pipeline import reasons
    from hf_safefilter.shards import Shard
    from hf_safefilter.trail import TRAIL, save_rows
    from hf_safefilter.workers import embed_in_processes

    if (shard is None) != (num_shards is None):
        raise OptionError("--shard and --num-shards go together", fix="use e.g. --shard 0 --num-shards 8")
    part = Shard(shard, num_shards) if shard is not None else None
    if part is None:
        require_replaceable(output, TRAIL)
    loaded = load_rows(rows, split=split)
    step = EmbedLayers(
        model, layers_of(layers), revision=revision, dtype=dtype, position=position, max_length=max_length,
        columns=pairs_of(column, "--column"), device=device, chat_template=chat_template, attn=attn,
    )  # fmt: skip
    if part is not None:
        _embed_part(context, loaded, step, output, part, num_proc)
        return
    embedded = embed_in_processes(loaded.rows, step, num_proc)
    save_rows(embedded, output, [step], name=loaded.name, revision=loaded.revision)
    facts = {"output": str(output), "layers": list(step.layers), "revision": step.revision} | reasons(embedded)
    first = step.layers[0]
    context.obj.report(
        facts,
        ids=[str(output)],
        hint=f"hf-safefilter reference starter --model {model} --layers {first} --output refs, then "
        f"hf-safefilter score {output} --method larf --layer {first} --references refs --output scored",
    )


def _embed_part(context: typer.Context, loaded: Any, step: Any, output: Any, part: Any, num_proc: int) -> None:
    from hf_safefilter.shards import embed_shard
    from hf_safefilter.workers import embed_in_processes

    folder, was_there = embed_shard(
        loaded, step, output, part, lambda rows, embed: embed_in_processes(rows, embed, num_proc)
    )
    context.obj.report(
        {"output": str(folder), "shard": part.index, "of": part.count, "done before": was_there},
        ids=[str(folder)],
        hint=f"when all {part.count} are there: hf-safefilter merge {output} --output embedded",
    )


def score(
    context: typer.Context,
    embedded: Annotated[
        Path, typer.Argument(help="Folder written by an earlier command; rows, for guard, length and random.")
    ],
    method: Annotated[
        str, typer.Option(help="larf, anchor, nearest, direction, saft, gradient, guard, length or random.")
    ],
    output: Output,
    layer: Annotated[str | None, typer.Option(help="Which embedded layer to use; the only one if left out.")] = None,
    references: Annotated[str | None, typer.Option(help="Folder or Hub id of a reference set.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the method, e.g. --option k=5.")] = None,
) -> None:
    """Add the score column of one method."""
    from hf_safefilter.artifacts import require_replaceable
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.pipeline import make_score, open_references, options_of, require_same_reading, score_rows
    from hf_safefilter.recipe import MethodChoice
    from hf_safefilter.trail import TRAIL, save_rows

    require_replaceable(output, TRAIL)
    reads_vectors = "layer" in options_of(method)
    saved = _saved(embedded, reads_vectors)
    reader = next((step for step in saved.steps if isinstance(step, EmbedLayers)), None)
    if reader is None and reads_vectors:
        raise OptionError(f"{embedded} holds no embeddings", fix="start with: hf-safefilter embed --help")
    chosen = _layer(layer, reader.layers) if reads_vectors else 0
    index = open_references(references) if references is not None else None
    if index is not None and reader is not None:
        require_same_reading(index, reader)
    step = make_score(
        MethodChoice.checked(name=method, options=values_of(option, "--option")),
        index,
        chosen,
        dict(reader.columns or ()) or None if reader is not None else None,
        saved.rows,
    )
    scored = score_rows(saved.rows, step)
    save_rows(scored, output, [*saved.steps, step], name=saved.name, revision=saved.revision)
    column = step.produces()[0]
    context.obj.report(
        {"output": str(output), "column": column},
        ids=[str(output)],
        hint=f"hf-safefilter select {output} --by {column} --drop-fraction 0.02 --output decided",
    )


def _saved(place: Path, reads_vectors: bool) -> Saved:
    """Rows of an earlier command; for a method that reads the text itself, any rows."""
    from hf_safefilter.inputs import load_rows
    from hf_safefilter.trail import TRAIL, Saved, load_rows_with_steps

    if reads_vectors or (place / TRAIL).is_file():
        return load_rows_with_steps(place)
    loaded = load_rows(str(place))
    return Saved(loaded.rows, [], loaded.name, loaded.revision)


def _layer(given: str | None, there: tuple[int | str, ...]) -> int | str:
    if given is None:
        if len(there) > 1:
            raise OptionError("which layer?", found=f"embedded: {', '.join(map(str, there))}", fix="give --layer")
        return there[0]
    layer = layers_of(given)[0]
    if layer not in there:
        raise OptionError(
            f"layer {layer} is not embedded", found=", ".join(map(str, there)), fix="embed it, or name one of these"
        )
    return layer


@reference.command(epilog="Example: hf-safefilter reference starter --model toy --layers 3,4 --output refs")
def starter(
    context: typer.Context,
    model: Model,
    layers: Layers,
    output: Output,
    revision: Revision = None,
    dtype: Dtype = "auto",
    position: Position = "last",
    max_length: MaxLength = None,
    device: Device = None,
    chat_template: Template = None,
) -> None:
    """Make a reference set from the small sets that ship with this package."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.references import ReferenceIndex

    step = EmbedLayers(
        model, layers_of(layers), revision=revision, dtype=dtype, position=position, max_length=max_length,
        device=device, chat_template=chat_template,
    )  # fmt: skip
    _save(context, ReferenceIndex.starter(step), output)


@reference.command(
    epilog="Example: hf-safefilter reference build unsafe.jsonl safe.jsonl --model toy --layers 4 "
    "--license mit --source 'our red team' --output refs"
)
def build(
    context: typer.Context,
    unsafe: Annotated[str, typer.Argument(help="Harmful requests answered: file, folder or Hub id.")],
    safe: Annotated[str, typer.Argument(help="The same requests refused: file, folder or Hub id.")],
    model: Model,
    layers: Layers,
    license: License,
    source: Source,
    output: Output,
    revision: Revision = None,
    dtype: Dtype = "auto",
    position: Position = "last",
    max_length: MaxLength = None,
    device: Device = None,
    chat_template: Template = None,
    column: Column = None,
) -> None:
    """Make a reference set from unsafe and safe rows."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.inputs import load_rows
    from hf_safefilter.references import ReferenceIndex

    step = EmbedLayers(
        model, layers_of(layers), revision=revision, dtype=dtype, position=position, max_length=max_length,
        columns=pairs_of(column, "--column"), device=device, chat_template=chat_template,
    )  # fmt: skip
    index = ReferenceIndex.build(load_rows(unsafe).rows, load_rows(safe).rows, step, license=license, source=source)
    _save(context, index, output)


@reference.command(epilog="Example: hf-safefilter reference show refs")
def show(context: typer.Context, references: Annotated[str, typer.Argument(help="Folder or Hub id.")]) -> None:
    """Say what a reference set holds (not its texts)."""
    from hf_safefilter.pipeline import open_references

    _report(context, open_references(references).summary(), str(references))


@reference.command(epilog="Example: hf-safefilter reference push refs me/my-references --yes")
def push(
    context: typer.Context,
    references: Folder,
    repo: Annotated[str, typer.Argument(help="Hub id to push to.")],
    public: Annotated[bool, typer.Option(help="Make a new repository public.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Publish a reference set: its texts go with it."""
    from hf_safefilter.references import ReferenceIndex

    index = ReferenceIndex.load(references)
    if not yes:
        typer.confirm(f"Push {references} with its texts to {repo}?", abort=True, err=True)
    index.push(repo, private=not public)
    context.obj.report({"repo": repo, "digest": index.digest}, ids=[repo])


def _save(context: typer.Context, index: Any, output: Any) -> None:
    index.save(output)
    _report(context, index.summary(), str(output))


def _report(context: typer.Context, summary: dict[str, Any], place: str) -> None:
    shown = {"references": place} | summary
    context.obj.report(
        {
            name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            for name, value in shown.items()
        },
        ids=[summary["digest"]],
        hint=f"hf-safefilter score embedded --method larf --references {place} --output scored",
    )
