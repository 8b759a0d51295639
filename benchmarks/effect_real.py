"""Does a score say which benign rows wear refusals away? Tuning a real aligned model on thirds of benign rows.

    python -m benchmarks.effect_real --model MODEL.gguf --adapter folder --rows benign.jsonl --output out/real
    python -m benchmarks.effect_real ... --score probe --seeds 0 1 2 --harmful prompts.jsonl

The rows (answers of 350 to 900 characters, so that length tells little) are scored with a reading chosen on the
references alone. A model is tuned on the third with the highest score, on the third with the lowest, on as many rows at
random, and on as many others of the same lengths as the highest: by LoRA, in equal steps. Finished runs are kept: the
same command goes on where it was stopped. A study on two cores takes a few minutes an arm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_safefilter import EmbedLayers, IsSafe, ReferenceIndex, choose_reading, load_rows, measure_effect, threshold_for
from hf_safefilter.columns import score_column
from hf_safefilter.decide.verdict.rank_statistics import spearman
from hf_safefilter.effect import EffectReport, Questions, Study, Tuning
from hf_safefilter.engine.local import embed_rows, score_rows
from hf_safefilter.locate.choose_reading import middle_layers
from hf_safefilter.model.reading_options import ModelOptions
from hf_safefilter.scores import make_score
from hf_safefilter.starter import starter_rows

SHORTEST, LONGEST = 350, 900
TURNED = "turned_score"


def main() -> None:
    """Score, tune and print."""
    ask = argparse.ArgumentParser(
        prog="python -m benchmarks.effect_real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument("--model", required=True)
    ask.add_argument("--adapter")
    ask.add_argument("--rows", required=True, help="benign rows with prompt and response")
    ask.add_argument("--limit", type=int, default=480, help="rows used (480)")
    ask.add_argument("--unsafe", help="references; the starter set if left out")
    ask.add_argument("--safe")
    ask.add_argument("--harmful", help="prompts that are asked; those of the starter set if left out")
    ask.add_argument("--questions", type=int, default=40)
    ask.add_argument("--score", default="shift", choices=("shift", "probe", "larf", "nearest"))
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--steps", type=int, default=20)
    ask.add_argument("--learning-rate", type=float, default=4e-4)
    ask.add_argument("--output", type=Path, required=True)
    options = ask.parse_args()
    rows = benign_rows(options.rows, options.limit)
    column = score_column(options.score)
    scored = score(rows, options)
    lengths = np.array([len(text) for text in scored["response"]], float)
    print(
        f"{len(scored)} rows; Spearman of {column} and length {spearman(np.array(scored[column], float), lengths):.2f}"
    )
    scored = scored.add_column(TURNED, [-value for value in scored[column]])
    high = study(scored, column, ("dropped", "random", "length_matched"), options)
    low = study(scored, TURNED, ("dropped",), options)
    print(f"\n{'tuned on':<22}{'refuses':>9}{'margin, nats':>14}   each seed")
    show("before", high, None)
    show("lowest third", low, "dropped")
    show("random third", high, "random")
    show("third of same length", high, "length_matched")
    show("highest third", high, "dropped")


def benign_rows(file: str, limit: int) -> Dataset:
    """Rows with answers of middling length, spread evenly over the file."""
    rows = load_rows(file).rows.select_columns(["prompt", "response"])
    fit = [at for at, text in enumerate(rows["response"]) if SHORTEST <= len(text) <= LONGEST]
    chosen = [fit[at] for at in np.linspace(0, len(fit) - 1, min(limit, len(fit))).round().astype(int)]
    return rows.select(chosen).flatten_indices()


def score(rows: Dataset, options: argparse.Namespace) -> Dataset:
    """The rows with the score, at the layers that the references choose."""
    first = EmbedLayers(options.model, [1], adapter=options.adapter)
    every = first.all_layers()
    layers = every if len(every) <= 8 else middle_layers(len(every))
    embed = EmbedLayers(first.model, layers, revision=first.revision, position="mean,last_prompt")
    sides = [starter_rows(name) for name in ("unsafe", "safe", "benign")]
    for place, file in enumerate((options.unsafe, options.safe)):
        if file is not None:
            sides[place] = load_rows(file).rows.to_list()
    sides = [[{name: row[name] for name in ("prompt", "response")} for row in side] for side in sides]
    index = ReferenceIndex.build(sides[0], sides[1], embed, benign=sides[2], license="unknown", source="a benchmark")
    choice = choose_reading(index)
    found = choice.layers_of(options.score)
    step = make_score(options.score, {}, references=index, layer=found[len(found) // 2], layers=found)
    print(f"{first.model}\nreading: {choice.how}\nscore: {step.record()}")
    embedded = embed_rows(rows, embed)
    return score_rows(embedded, step).remove_columns(
        [name for name in embedded.column_names if name.startswith("emb_layer_")]
    )


def study(scored: Dataset, column: str, arms: tuple[str, ...], options: argparse.Namespace) -> EffectReport:
    """The effect of tuning on the third of the rows that scores highest in `column`."""
    is_safe = IsSafe(column, threshold_for(scored, column, drop_fraction=1 / 3))
    questions = Questions.starter()
    if options.harmful is not None:
        questions = questions.replaced(harmful=(load_rows(options.harmful).rows, options.harmful))
    tuning = Tuning(steps=options.steps, batch=8, micro_batch=4, learning_rate=options.learning_rate, max_length=512)
    asked = Study(
        ModelOptions(options.model, adapter=options.adapter, dtype="float32", device="cpu"),
        questions,
        tuning=tuning,
        arms=arms,
        seeds=options.seeds,
        hold_out=20,
        ask_at_most=options.questions,
        max_new_tokens=24,
    )
    return measure_effect(
        scored, is_safe, asked, options.output / column, on_run=lambda run, number, count: print(
            f"  {column} {number}/{count} {run.arm} seed {run.seed}: refuses {run.measured.harmful.refusal:.0%}",
            flush=True,
        ),
    )  # fmt: skip


def show(name: str, report: EffectReport, arm: str | None) -> None:
    """One line of the table."""
    runs = [report.before] if arm is None else report.of(arm)
    refused = [run.measured.harmful.refusal for run in runs]
    margins = [run.measured.margin for run in runs]
    each = "  ".join(f"{share:.0%} {margin:.2f}" for share, margin in zip(refused, margins, strict=True))
    print(f"{name:<22}{np.mean(refused):>9.0%}{np.mean(margins):>14.2f}   {each}", flush=True)


if __name__ == "__main__":
    main()
