"""run: the whole job from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.cli.output import Voice
    from hf_safefilter.engine import Engine
    from hf_safefilter.pipeline.purify import Purified

EXAMPLE = "hf-safefilter run recipe.yaml --output out"


def run(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="YAML recipe.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    include_text: Annotated[bool, typer.Option(help="Put the text of dropped rows into dropped.parquet.")] = False,
    engine: Annotated[str | None, typer.Option(help="ray: embed and score in a pool of Ray actors.")] = None,
    actors: Annotated[int | None, typer.Option(help="With --engine ray: how many actors; 1 if left out.")] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="With --engine ray: GPUs of each; 0 if left out.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a recipe to start from.")] = False,
) -> None:
    """Do the whole job from a recipe: kept rows, dropped list, card and plots in one folder.

    With --engine ray a cluster that RAY_ADDRESS names is used, else this machine alone. Sets larger than memory and
    disk: data.streaming in the recipe. Then only ids, scores and reasons are kept before the decision, and a second
    reading writes the kept rows.
    """
    from hf_safefilter.recipe import EXAMPLE as RECIPE
    from hf_safefilter.recipe import Recipe

    if schema or example:
        typer.echo(Recipe.schema_json() if schema else RECIPE, nl=schema)
        return
    if recipe is None or output is None:
        raise OptionError("run needs a recipe and --output", fix="hf-safefilter run --example > recipe.yaml, edit it")
    carry_out(context.obj, Recipe.read(recipe), output, include_text, _engine(engine, actors, gpus_per_actor))


def _engine(name: str | None, actors: int | None, gpus_per_actor: float | None) -> Engine | None:
    if name not in (None, "ray"):
        raise OptionError(f"there is no engine {name!r}", fix="use --engine ray, or leave it out")
    if name is None:
        if actors is not None or gpus_per_actor is not None:
            raise OptionError("actors are Ray's", fix="add --engine ray")
        return None
    from hf_safefilter.engine.ray import RayEngine

    return RayEngine(actors=1 if actors is None else actors, gpus_per_actor=gpus_per_actor or 0)


def carry_out(
    voice: Voice, recipe: Any, output: Path, include_text: bool = False, engine: Engine | None = None
) -> Purified:
    """Purify, write the output folder, and say what happened."""
    from hf_safefilter.pipeline.purify import purify
    from hf_safefilter.publish.folder import PROVENANCE, write_folder
    from hf_safefilter.storage.atomic import require_replaceable

    require_replaceable(output, PROVENANCE)
    if engine is not None and recipe.data.streaming and include_text:
        raise OptionError("of a stream the dropped rows are not kept", fix="leave out --include-text or data.streaming")
    done = purify(None, recipe, engine=engine)
    write_folder(output, done.scored, done.is_safe, done.provenance, include_text=include_text, kept=done.kept)
    if done.layer_choice is not None:
        voice.table(f"Layer {done.layer_choice.layer}: {done.layer_choice.how}", done.layer_choice.shown())
    if done.evaluation is not None:
        voice.table("How well each score separates the labels", done.evaluation.table())
    voice.table("Rows", [{"": name, "rows": number} for name, number in _flat(done.counts)])
    voice.report(
        {"output": str(output), "threshold": float(done.is_safe.threshold), "rule": done.is_safe.rule,
         "counts": done.provenance.to_dict()["counts"]},
        ids=[str(output)],
        hint=f"look at {output / 'README.md'}, then: hf-safefilter push {output} me/my-set",
    )  # fmt: skip
    return done


def _flat(counts: Any) -> list[tuple[str, int]]:
    plain = {"rows": counts.rows, "kept": counts.kept, "dropped": counts.dropped}
    return [*plain.items(), *((f"  {reason}", number) for reason, number in counts.by_reason.items())]
