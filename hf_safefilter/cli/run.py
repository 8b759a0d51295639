"""run: carry out a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_safefilter.cli.arguments import Anyway
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.cli.output import Printer
    from hf_safefilter.engine import Engine
    from hf_safefilter.pipeline.purify import Purified
    from hf_safefilter.publish.provenance import Counts
    from hf_safefilter.recipe import Recipe

EXAMPLE = "hf-safefilter run recipe.yaml --output out"


def run(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="YAML recipe.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    scored: Annotated[
        Path | None, typer.Option(help="Folder that gets all rows with vectors and scores, for review and inspect.")
    ] = None,
    include_text: Annotated[bool, typer.Option(help="Put the text of dropped rows into dropped.parquet.")] = False,
    engine: Annotated[str | None, typer.Option(help="ray: embed and score in a pool of Ray actors.")] = None,
    actors: Annotated[int | None, typer.Option(help="With --engine ray: number of actors; 1 if left out.")] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="With --engine ray: GPUs of each actor; 0 if left out.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a recipe to start from.")] = False,
    anyway: Anyway = False,
) -> None:
    """Carry out a recipe: kept rows, list of dropped rows, card and plots are written into one folder.

    With --engine ray, the cluster at RAY_ADDRESS is used, or this machine if it is not set. For sets larger than memory
    and disk, set data.streaming in the recipe: only ids, scores and reasons are stored before the decision, and the
    kept rows are written while the data set is read a second time.

    The exit code is 3 if something speaks against the score that decides: the folder is there, and should not be used.
    """
    from hf_safefilter.recipe import EXAMPLE as RECIPE
    from hf_safefilter.recipe import Recipe

    if schema or example:
        typer.echo(Recipe.schema_json() if schema else RECIPE, nl=schema)
        return
    if recipe is None or output is None:
        raise OptionError(
            "run needs a recipe and --output", fix="start with an example: hf-safefilter run --example > recipe.yaml"
        )
    pool = _engine(engine, actors, gpus_per_actor)
    run_recipe(context.obj, Recipe.read(recipe), output, include_text, pool, anyway, scored)


def _engine(name: str | None, actors: int | None, gpus_per_actor: float | None) -> Engine | None:
    if name not in (None, "ray"):
        raise OptionError(f"there is no engine {name!r}", fix="use --engine ray, or leave it out")
    if name is None:
        if actors is not None or gpus_per_actor is not None:
            raise OptionError(
                "--actors and --gpus-per-actor need --engine ray", fix="add --engine ray, or leave them out"
            )
        return None
    from hf_safefilter.engine.ray import RayEngine

    return RayEngine(actors=1 if actors is None else actors, gpus_per_actor=gpus_per_actor or 0)


def run_recipe(
    printer: Printer,
    recipe: Recipe,
    output: Path,
    include_text: bool = False,
    engine: Engine | None = None,
    anyway: bool = False,
    scored: Path | None = None,
) -> Purified:
    """Carry out a recipe, write the output folder and, if it is named, that of the scored rows; print the result.

    Raises:
        typer.Exit: Something speaks against the score that decides, and the user does not insist.
    """
    from hf_safefilter.data.splits import parts_of
    from hf_safefilter.locate.choose_reading import ReadingChoice
    from hf_safefilter.pipeline.purify import purify
    from hf_safefilter.publish.folder import PROVENANCE, write_folder
    from hf_safefilter.saved.saved_rows import TRAIL, save_rows
    from hf_safefilter.storage.atomic import require_replaceable

    require_replaceable(output, PROVENANCE)
    if scored is not None:
        require_replaceable(scored, TRAIL)
        one, other = scored.resolve(), output.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one) or engine is not None or recipe.data.streaming:
            raise OptionError(
                "all rows with their scores are written beside the output, by this process, and not of a stream",
                fix="name another folder, or leave out --scored",
            )
    if engine is not None and recipe.data.streaming and include_text:
        raise OptionError(
            "the text of dropped rows is not stored for a stream", fix="leave out --include-text or data.streaming"
        )
    result = purify(None, recipe, engine=engine, anyway=anyway)
    assert result.source is not None  # a recipe of the command line names its rows
    streamed = not all(hasattr(part, "data") for part in parts_of(result.kept))
    write_folder(
        output, result.scored, result.is_safe, result.provenance, include_text=include_text,
        kept=result.kept if streamed else None, additions=result.additions, recheck=result.source.require_unchanged,
    )  # fmt: skip
    if scored is not None:
        save_rows(result.scored, scored, result.steps, name=result.source.name, revision=result.source.revision,
                  recheck=result.source.require_unchanged)  # fmt: skip
    if (choice := result.layer_choice) is not None:
        title = choice.how if isinstance(choice, ReadingChoice) else f"layer {choice.layer}, by {choice.how}"
        printer.table(f"Read: {title}", choice.shown())
    if result.evaluation is not None:
        printer.table("How well each score separates the labels", result.evaluation.table())
    printer.table("Rows", [{"": name, "rows": number} for name, number in _flat(result.counts)])
    review = f"hf-safefilter review {scored} --by {result.is_safe.column} --threshold {result.is_safe.threshold:.6g}"
    look = f"look at {output / 'README.md'}" if scored is None else f"look at the rows: {review}"
    printer.judged(
        result.verdict,
        {"output": str(output), "threshold": float(result.is_safe.threshold), "rule": result.is_safe.rule,
         "counts": result.provenance.to_dict()["counts"]},
        anyway=anyway,
        ids=[str(output)],
        hint=f"{look}, then: hf-safefilter push {output} me/my-set",
        instead=_comparison(recipe) if scored is None else review,
    )  # fmt: skip
    return result


def _comparison(recipe: Recipe) -> str:
    """The command that shows what other methods find in the rows of a recipe."""
    labels = recipe.evaluate or recipe.select
    label = f" --label {shlex.quote(labels.label)}" if labels.label is not None else ""
    rows, model = shlex.quote(str(recipe.data.path)), shlex.quote(recipe.model.model)
    return f"hf-safefilter compare {rows} --model {model}{label} --output compared"


def _flat(counts: Counts) -> list[tuple[str, int]]:
    totals = {"rows": counts.rows, "kept": counts.kept, "dropped": counts.dropped}
    return [*totals.items(), *((f"  {reason}", number) for reason, number in counts.by_reason.items())]
