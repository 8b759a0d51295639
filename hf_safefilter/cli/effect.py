"""effect: tune on the rows that a filter keeps and on those it drops, and measure how the model changes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from hf_safefilter.cli.arguments import Column, Folder, ScoreColumn, TrustVectors, blocks_of, pairs_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ModelOptions
from hf_safefilter.pipeline.stored_decision import decision_in

if TYPE_CHECKING:
    from hf_safefilter.cli.output import Printer
    from hf_safefilter.effect import Questions, Tuning
    from hf_safefilter.effect.ledger import Run
    from hf_safefilter.saved.saved_rows import Saved

EXAMPLE = "hf-safefilter effect scored --by larf_score --drop-fraction 0.05 --quick --output effect"

_ARMS = "all,kept,dropped,random,length_matched"
_QUICK_STEPS, _QUICK_QUESTIONS = 40, 60
_TOY_RATE = 1e-3  # the toy model is so small that lower rates hardly change it


@reads_a_model(optional=True)
def effect(
    context: typer.Context,
    scored: Folder,
    options: ModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an earlier study in it is resumed.")],
    by: ScoreColumn = None,
    drop_fraction: Annotated[float | None, typer.Option(help="Drop this share of the scored rows.")] = None,
    drop_count: Annotated[int | None, typer.Option(help="Drop this many rows.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Drop rows that score this or more.")] = None,
    harmful: Annotated[
        str | None, typer.Option(help="Prompts that an aligned model refuses: file, folder or Hub id.")
    ] = None,
    over_refusal: Annotated[str | None, typer.Option(help="Prompts that only sound harmful.")] = None,
    benign: Annotated[
        str | None,
        typer.Option(help="Good rows to measure the loss on; some kept rows are held out if this is left out."),
    ] = None,
    arms: Annotated[str, typer.Option(help=f"Some of {_ARMS},masked,refusals, separated by commas.")] = _ARMS,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; intervals need two, and are wide with few.")] = 3,
    tune: Annotated[str | None, typer.Option(help="lora, or full for all parameters.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer, the same for all arms.")] = 200,
    batch: Annotated[int, typer.Option(help="Rows in a step.")] = 16,
    micro_batch: Annotated[
        int | None, typer.Option(help="Rows processed at once, if a batch does not fit into memory.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="2e-4 for LoRA, 2e-5 for full tuning.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of LoRA.")] = 16,
    target: Annotated[
        list[str] | None, typer.Option(help="Layers that LoRA changes; all linear ones if left out.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = 1024,
    freeze: Annotated[
        str | None, typer.Option(help="First and last block that are frozen in additional arms, e.g. 2-4.")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="List of refusal phrases: broad, larf, qi2023 or safety_layers.")
    ] = "broad",
    reply_tokens: Annotated[int, typer.Option(help="Largest number of tokens in a reply.")] = 32,
    column: Column = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps and questions, for minutes on the toy model.")
    ] = False,
    trust_vectors: TrustVectors = False,
) -> None:
    """Tune on all, kept, dropped, random and length-matched rows; measure refusals, over-refusal and loss.

    Beside the refusals that are counted stands their margin: the log-odds, in nats, of beginning an answer by refusing
    to beginning it by complying. Without --model, the model that the rows were read with is tuned.
    """
    from hf_safefilter.effect import Study, measure_effect

    saved, is_safe = decision_in(scored, by, {"drop_fraction": drop_fraction, "drop_count": drop_count,
                                            "threshold": threshold}, trust_vectors)  # fmt: skip
    reader = next((step for step in saved.steps if isinstance(step, ModelOptions)), None)
    options = _tuned(options, reader)
    tuning = _tuning(options.model, tune, learning_rate, steps=min(steps, _QUICK_STEPS) if quick else steps,
                     batch=batch, micro_batch=micro_batch, rank=rank, targets=tuple(target or ("all-linear",)),
                     max_length=max_length)  # fmt: skip
    study = Study(
        options,
        _questions(options.model, harmful, over_refusal, benign),
        tuning=tuning,
        arms=[arm.strip() for arm in arms.split(",") if arm.strip()],
        seeds=range(seeds),
        ask_at_most=_QUICK_QUESTIONS if quick else None,
        freeze=blocks_of(freeze, "--freeze") if freeze is not None else None,
        known_prompts=_reference_prompts(saved),
        judge=judge,
        max_new_tokens=reply_tokens,
        columns=pairs_of(column, "--column") or saved.mapping,
    )
    report = measure_effect(saved.rows, is_safe, study, output, on_run=_progress(context.obj))
    saved.require_unchanged()
    printer = context.obj
    printer.table(
        "Rows tuned on; share of harmful prompts refused, margin of refusing in nats, share of harmless prompts "
        "refused, replies without text, benign loss; intervals over seeds, of a margin of one model over prompts",
        report.table(),
    )
    for contrast in report.contrasts:
        printer.message(contrast.sentence)
    if report.verdict:
        printer.message(report.verdict)
    counts = report.counts
    left_out = sum(counts[name] for name in counts if name.endswith("_left_out"))
    printer.message(f"{left_out} questions were left out, because they are also in the rows or among the references.")
    printer.report(
        {"output": str(output), "plot": str(output / "effect.png"), "effect": report.to_json()},
        ids=[json.dumps(line) for line in report.table()],
        hint=f"hf-safefilter card DECIDED --effect {output} --license LICENSE --source SOURCE --output out",
    )


def _tuned(options: ModelOptions, reader: ModelOptions | None) -> ModelOptions:
    """The model to tune: the one that is named, else the one that read the rows, with the same template."""
    if reader is not None:
        options = replace(options, chat_template=options.chat_template or reader.chat_template)
    if options.model:
        return options
    if reader is None:
        raise OptionError("the model to tune is not known", fix="name it with --model")
    return replace(options, model=reader.model, revision=options.revision or reader.revision)


def _tuning(model: str, method: str | None, rate: float | None, **options: Any) -> Tuning:
    from hf_safefilter.effect import Tuning
    from hf_safefilter.model.source import TOY

    if model == TOY:
        method, rate = method or "full", rate or _TOY_RATE
    checked = cast("Literal['lora', 'full']", method or "lora")  # by Tuning
    return Tuning(method=checked, learning_rate=rate, **options)


def _questions(model: str, harmful: str | None, over_refusal: str | None, benign: str | None) -> Questions:
    """The questions in the files that are named; the others are those of the toy model, or of the starter sets."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.effect import Questions
    from hf_safefilter.model.source import TOY

    questions = Questions.toy() if model == TOY else Questions.starter()
    files = {"harmful": harmful, "over_refusal": over_refusal, "benign": benign}
    loaded = {kind: load_rows(file) for kind, file in files.items() if file is not None}
    replaced = questions.replaced(
        **{kind: (source.rows, f"{source.name} ({source.revision})") for kind, source in loaded.items()}
    )
    for source in loaded.values():  # all of their rows were copied
        source.require_unchanged()
    return replaced


def _reference_prompts(saved: Saved) -> list[str]:
    """Prompts of the references: they must not be asked, because the score has used them."""
    from hf_safefilter.data.conversations import prompt_of
    from hf_safefilter.decide.overlap import references_of

    rows = (row for index in references_of(saved.steps) for side in ("unsafe", "safe") for row in index.rows(side))
    return [prompt_of(row.conversation) for row in rows]


def _progress(printer: Printer) -> Callable[[Run, int, int], None]:
    """A function that prints, after each run, its result and the time that is left."""
    began = time.monotonic()

    def print_run(run: Run, number: int, count: int) -> None:
        left = (time.monotonic() - began) / number * (count - number)
        printer.message(
            f"{number} of {count}: {run.arm}, seed {run.seed}: {run.measured.harmful.refusal:.1%} of harmful prompts "
            f"refused, margin {run.measured.margin:.2f} nats ({run.seconds:.0f} s; about {left:.0f} s left)"
        )

    return print_run
