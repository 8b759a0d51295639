"""evaluate, select, run, demo: from scores to the rows that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.options import Folder, Output
from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from hf_safefilter.cli.voice import Voice
    from hf_safefilter.engine import Engine
    from hf_safefilter.pipeline import Purified

_RULES = ("drop_fraction", "drop_count", "threshold", "label", "known_good")


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command(epilog="Example: hf-safefilter evaluate scored --label label")(evaluate)
    app.command(epilog="Example: hf-safefilter select scored --by larf_score --drop-fraction 0.02 --output decided")(
        select
    )
    app.command(epilog="Example: hf-safefilter run recipe.yaml --output out")(run)
    app.command(epilog="Example: hf-safefilter demo --output demo")(demo)


def evaluate(
    context: typer.Context,
    scored: Folder,
    label: Annotated[str, typer.Option(help="Column with the labels.")],
    unsafe: Annotated[str, typer.Option(help="Value that means unsafe.")] = "unsafe",
) -> None:
    """Measure how well each score separates labelled rows, beside length and random."""
    from hf_safefilter.evaluation import evaluate as measure
    from hf_safefilter.trail import load_rows_with_steps

    found = measure(load_rows_with_steps(scored).rows, label, unsafe=unsafe)
    context.obj.table("How well each score separates the labels", found.table())
    context.obj.report({"evaluation": found.to_json()}, ids=[json.dumps(row) for row in found.table()])


def select(
    context: typer.Context,
    scored: Folder,
    by: Annotated[str, typer.Option(help="Score column to decide by.")],
    output: Output,
    drop_fraction: Annotated[float | None, typer.Option(help="Drop this share of the scored rows.")] = None,
    drop_count: Annotated[int | None, typer.Option(help="Drop this many rows.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop rows that score this or more.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with labels, for --rule.")] = None,
    unsafe: Annotated[str, typer.Option(help="Label that means unsafe.")] = "unsafe",
    rule: Annotated[str | None, typer.Option(help="best_f1 or tpr_at_fpr.")] = None,
    max_fpr: Annotated[float | None, typer.Option(help="For tpr_at_fpr.")] = None,
    known_good: Annotated[str | None, typer.Option(help="Rows known to be good, for a guarantee.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="At most this share of such rows may be lost ...")] = None,
    confidence: Annotated[float | None, typer.Option(help="... at this confidence.")] = None,
) -> None:
    """Decide which rows to keep; writes kept/ and dropped/ (`save_to_disk` folders) and the decision."""
    from hf_safefilter.decision import write_decision
    from hf_safefilter.pipeline import decide_threshold
    from hf_safefilter.recipe import Selection
    from hf_safefilter.select import IsSafe
    from hf_safefilter.trail import load_rows_with_steps

    saved = load_rows_with_steps(scored)
    wanted = {"drop_fraction": drop_fraction, "drop_count": drop_count, "threshold": threshold, "label": label,
              "rule": rule, "max_fpr": max_fpr, "known_good": known_good, "max_loss": max_loss,
              "confidence": confidence, "unsafe": unsafe}  # fmt: skip
    selection = Selection.checked(**{name: value for name, value in wanted.items() if value is not None})
    is_safe = IsSafe(by, decide_threshold(saved.rows, by, selection, saved.steps))
    parts = write_decision(output, saved, is_safe)
    facts = {"kept": parts.n_kept, "dropped": parts.n_dropped, "threshold": is_safe.threshold, "rule": is_safe.rule}
    context.obj.report(
        {"output": str(output)} | facts,
        ids=[str(output / "kept")],
        hint=f"hf-safefilter card {output} --license LICENSE --source SOURCE --output out",
    )


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
    from hf_safefilter.recipe import EXAMPLE, Recipe

    if schema or example:
        typer.echo(Recipe.schema_json() if schema else EXAMPLE, nl=schema)
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
    from hf_safefilter.artifacts import require_replaceable
    from hf_safefilter.pipeline import purify
    from hf_safefilter.publish.folder import PROVENANCE, write_folder

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


def demo(context: typer.Context, output: Output = Path("demo")) -> None:
    """See the main job on the toy model: a mixed set in, a clean set with a card out. Offline, under a minute."""
    from hf_safefilter.demo import prepare

    voice = context.obj
    voice.say("Benign rows with planted unsafe ones, alike in length; the toy model; references of the same domain.")
    recipe = prepare(output)
    done = carry_out(voice, recipe, output / "clean")
    voice.say(f"Plots: {output / 'clean' / 'plots'}. The recipe: {output / 'recipe.yaml'}; change it and run it again.")
    del done
