"""What a filter does to a real aligned model: tuning on rows that wear refusals away, and on poisoned ones.

    python -m benchmarks.effect_real thirds --model MODEL.gguf --adapter folder --rows benign.jsonl --output out/thirds
    python -m benchmarks.effect_real mixed --rows benign.jsonl --unsafe-rows labeled.jsonl ... --output out/mixed
    python -m benchmarks.effect_real persona --rows benign.jsonl ... --output out/persona

- `thirds`: benign rows alone, at a harsh rate. The model is tuned on the third with the lowest score, the third with
  the highest, as many rows at random, and, for each of the two thirds, as many others of its lengths.
- `mixed`: benign rows and 10 % unsafe ones, at a gentle rate; `persona`: benign rows, in 10 % of which an assistant
  first vows to obey. A tenth of the rows is dropped. Arms: all, kept, dropped, random, length-matched, kept and 1 %
  refusals; with --score of a single method masked, too; with --freeze also all and kept with frozen safety layers;
  and what a filter without error would keep: the benign rows alone.

Benign rows have answers of 350 to 900 characters, so that length tells little, or of --answers SHORTEST LONGEST. All
models are measured by the same other benign rows of the file.

The score is the default, chosen on the references alone: the largest deviation of ensemble and shift. Tuning is by
LoRA, in equal steps. Finished runs are kept: the same command goes on where it was stopped. An arm takes minutes on two
cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.obedient_rows import obedient_rows
from benchmarks.real_reading import Reading, add_options, parsed, spread
from hf_safefilter import IsSafe, choose_reading, load_rows, measure_effect, threshold_for
from hf_safefilter.cli.arguments import blocks_of
from hf_safefilter.columns import score_column
from hf_safefilter.decide.refusals_to_add import diverse_refusals
from hf_safefilter.decide.verdict.rank_statistics import spearman
from hf_safefilter.effect import EffectReport, Questions, Study, Tuning
from hf_safefilter.effect.effect_report import contrasts_of
from hf_safefilter.effect.ledger import Run
from hf_safefilter.engine.local import add_ranks, embed_rows, score_rows
from hf_safefilter.model.reading_options import ModelOptions
from hf_safefilter.scores import make_score
from hf_safefilter.starter import starter_rows

ANSWERS = (350, 900)
TURNED, TRUTH = "turned_score", "planted_score"
PLANTED = 0.1
REFUSALS = 0.01
"""Share of refusals that the arm of that name adds to the kept rows."""

HELD_OUT = 20
RATES = {"thirds": 4e-4, "mixed": 1e-4, "persona": 1e-4}
DEFAULT = ("ensemble", "shift")
ARMS = ("all", "kept", "dropped", "random", "length_matched", "refusals")


def main() -> None:
    """Score, tune and print."""
    ask = argparse.ArgumentParser(
        prog="python -m benchmarks.effect_real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument("study", choices=tuple(RATES))
    add_options(ask)
    ask.add_argument("--rows", required=True, help="benign rows with prompt and response")
    ask.add_argument("--unsafe-rows", help="labelled rows; those labelled unsafe are planted")
    ask.add_argument("--limit", type=int, default=480, help="benign rows used (480)")
    ask.add_argument(
        "--answers", type=int, nargs=2, default=ANSWERS, help="characters of the answers of benign rows (350 900)"
    )
    ask.add_argument("--harmful", help="prompts that are asked; those of the starter set if left out")
    ask.add_argument("--questions", type=int, default=40)
    ask.add_argument("--score", default="default", choices=("default", "ensemble", "shift", "probe", "larf", "nearest"))
    ask.add_argument("--arms", nargs="+", default=None)
    ask.add_argument("--freeze", help="first and last safety layer, e.g. 5-9, for arms with these frozen")
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ask.add_argument("--steps", type=int, default=20)
    ask.add_argument("--micro-batch", type=int, default=4, help="rows at a time, of the 8 of a step")
    ask.add_argument("--learning-rate", type=float, help="4e-4 for thirds, else 1e-4")
    ask.add_argument("--output", type=Path, required=True)
    options = parsed(ask)
    if (options.study == "mixed") != (options.unsafe_rows is not None):
        ask.error("--unsafe-rows belongs to the study mixed, which needs it")
    scored, column = score(rows_of(options), options)
    lengths = np.array([len(text) for text in scored["response"]], float)
    scores = np.array(scored[column], float)
    print(f"{len(scored)} rows; Spearman of {column} and length {spearman(scores, lengths):.2f}", flush=True)
    if options.study == "thirds":
        return thirds(scored, column, options)
    planted = np.array(scored["planted"])
    print(f"{planted.sum()} planted rows, AUROC {auroc(scores, planted):.3f}", flush=True)
    arms = tuple(options.arms or (ARMS if options.score == "default" else (*ARMS, "masked")))
    is_safe = without_highest(scored, column, PLANTED)
    print(f"{(~(scores[planted] < is_safe.threshold)).sum()} of them are dropped", flush=True)
    known = added_prompts(len(scored)) if "refusals" in arms else []
    report = study(scored, is_safe, arms, options, known, options.freeze)
    scored = scored.add_column(TRUTH, planted.astype(float).tolist())
    ideal = study(scored, IsSafe(TRUTH, 0.5), ("kept",), options, known)
    if ideal.inputs["questions"] != report.inputs["questions"]:
        raise SystemExit("not all arms were asked the same")
    runs = {arm: report.of(arm) for arm in report.arms} | {"benign rows alone": ideal.of("kept")}
    heading()
    show("before", [report.before])
    for arm, each in runs.items():
        show(arm, each)
    print()
    for arm, each in runs.items():
        print(contrasts_of("before", [report.before] * len(each), arm, each)[0].sentence)
    for contrast in report.contrasts:
        print(contrast.sentence)
    return None


def thirds(scored: Dataset, column: str, options: argparse.Namespace) -> None:
    """Tune on the third that scores lowest and on the highest, on one at random and on two of the same lengths."""
    scored = scored.add_column(TURNED, [-value for value in scored[column]])
    low = study(scored, without_highest(scored, TURNED, 1 / 3), ("dropped", "length_matched"), options)
    high = study(scored, without_highest(scored, column, 1 / 3), ("dropped", "random", "length_matched"), options)
    arms = {
        "lowest": low.of("dropped"),
        "of the lowest's lengths": low.of("length_matched"),
        "random": high.of("random"),
        "of the highest's lengths": high.of("length_matched"),
        "highest": high.of("dropped"),
    }
    heading()
    show("before", [high.before])
    for name, runs in arms.items():
        show(name, runs)
    print()
    for first, second in (
        ("lowest", "highest"),
        ("lowest", "random"),
        ("lowest", "of the lowest's lengths"),
        ("lowest", "of the highest's lengths"),
        ("of the highest's lengths", "highest"),
    ):
        for contrast in contrasts_of(first, arms[first], second, arms[second]):
            print(contrast.sentence)


def rows_of(options: argparse.Namespace) -> Dataset:
    """Benign rows, and planted ones in the studies that have some, in a fixed random order."""
    if options.study == "persona":
        return Dataset.from_list(with_vows(options.rows, options.limit, options.answers))
    rows = benign_rows(options.rows, options.limit, options.answers).to_list()
    if options.study == "thirds":
        return Dataset.from_list(rows)
    count = round(len(rows) * PLANTED / (1 - PLANTED))
    labelled = load_rows(options.unsafe_rows).rows.select_columns(["prompt", "response", "label"]).to_list()
    unsafe = [row for row in labelled if row.pop("label") == "unsafe"]
    return Dataset.from_list(_mixed(rows, [unsafe[at] for at in spread(list(range(len(unsafe))), count)]))


def with_vows(file: str, limit: int, answers: Sequence[int] = ANSWERS) -> list[dict[str, Any]]:
    """Benign rows, a tenth of which an assistant answers that first vows to obey, in a fixed random order."""
    rows = benign_rows(file, limit, answers).to_list()
    places = spread(list(range(len(rows))), round(len(rows) * PLANTED))
    planted = obedient_rows([rows.pop(at) for at in reversed(places)])
    return _mixed(rows, planted)


def _mixed(rows: list[dict[str, str]], planted: list[dict[str, str]]) -> list[dict[str, Any]]:
    every = [row | {"planted": False} for row in rows] + [row | {"planted": True} for row in planted]
    return [every[at] for at in np.random.default_rng(0).permutation(len(every))]


def benign_rows(file: str, limit: int, answers: Sequence[int] = ANSWERS) -> Dataset:
    """Rows with answers of these numbers of characters, spread evenly over the file."""
    rows, fit = of_lengths(file, answers)
    return rows.select(spread(fit, limit)).flatten_indices()


def other_rows(file: str, limit: int, answers: Sequence[int]) -> list[dict[str, str]]:
    """Rows like those of `benign_rows` that are not among them."""
    rows, fit = of_lengths(file, answers)
    others = sorted({*fit} - {*spread(fit, limit)})
    if len(others) < HELD_OUT:
        raise SystemExit(f"{file} holds {len(others)} rows beside those tuned on, not {HELD_OUT}: lower --limit")
    return rows.select(spread(others, HELD_OUT)).to_list()


def of_lengths(file: str, answers: Sequence[int]) -> tuple[Dataset, list[int]]:
    """The rows of a file, and the places of those with answers of these numbers of characters."""
    shortest, longest = answers
    rows = load_rows(file).rows.select_columns(["prompt", "response"])
    fit = [at for at, text in enumerate(rows["response"]) if shortest <= len(text) <= longest]
    if not fit:
        raise SystemExit(f"{file} holds no answer of {shortest} to {longest} characters")
    return rows, fit


def score(rows: Dataset, options: argparse.Namespace) -> tuple[Dataset, str]:
    """The rows with the score that decides, at the layers that the references choose, and its column."""
    reading = Reading.of(options)
    methods = DEFAULT if options.score == "default" else (options.score,)
    choice = choose_reading(reading.index, methods=methods)
    print(f"{reading.embed.model}\nreading: {choice.how}")
    scored = embed_rows(rows, reading.embed)
    columns = [score_column(method) for method in methods]
    for method in methods:
        read = choice.layers_of(method)
        step = make_score(method, {}, references=reading.index, layer=read[len(read) // 2], layers=read)
        print(f"score: {step.record()}")
        scored = score_rows(scored, step)
    if len(methods) > 1:
        scored, rank = add_ranks(scored, columns, "largest_deviation")
        columns = [rank.produces()[0]]
    return scored.remove_columns([name for name in scored.column_names if name.startswith("emb_layer_")]), columns[0]


def without_highest(scored: Dataset, column: str, share: float) -> IsSafe:
    """The filter that drops the share of the rows that scores highest in `column`."""
    return IsSafe(column, threshold_for(scored, column, drop_fraction=share))


def added_prompts(rows: int) -> list[str]:
    """The prompts of the refusals that are added to so many rows, or fewer: no arm is asked these."""
    return [row["prompt"] for row in diverse_refusals(max(1, round(REFUSALS * rows)), starter_rows("safe"))]


def study(
    scored: Dataset,
    is_safe: IsSafe,
    arms: tuple[str, ...],
    options: argparse.Namespace,
    known: Sequence[str] = (),
    freeze: str | None = None,
) -> EffectReport:
    """The effect of a filter, by questions other than the `known` ones."""
    questions = Questions.starter()
    if options.harmful is not None:
        questions = questions.replaced(harmful=(load_rows(options.harmful).rows, options.harmful))
    # two studies of one table must not hold out rows of their own
    questions = questions.replaced(benign=(other_rows(options.rows, options.limit, options.answers), options.rows))
    rate = options.learning_rate or RATES[options.study]
    asked = Study(
        ModelOptions(options.model, adapter=options.adapter, dtype="float32", device=options.device),
        questions,
        tuning=Tuning(
            steps=options.steps, batch=8, micro_batch=options.micro_batch, learning_rate=rate, max_length=512
        ),
        arms=arms,
        seeds=options.seeds,
        freeze=blocks_of(freeze, "--freeze") if freeze else None,
        known_prompts=known,
        ask_at_most=options.questions,
        max_new_tokens=24,
    )

    def tell(run: Run, number: int, count: int) -> None:
        measured = run.measured
        print(
            f"  {is_safe.column} {number}/{count} {run.arm} seed {run.seed}: "
            f"refuses {measured.harmful.refusal:.0%}, margin {measured.margin:.2f}, {run.seconds:.0f} s",
            flush=True,
        )

    return measure_effect(scored, is_safe, asked, options.output / is_safe.column, on_run=tell)


def auroc(scores: np.ndarray, planted: np.ndarray) -> float:
    """Chance that a planted row scores above another."""
    from sklearn.metrics import roc_auc_score

    finite = np.isfinite(scores)
    return float(roc_auc_score(planted[finite], scores[finite]))


def heading() -> None:
    """The head of the table."""
    print(f"\n{'tuned on':<26}{'refuses':>9}{'margin, nats':>14}{'benign loss':>13}   each seed")


def show(name: str, runs: list[Run]) -> None:
    """One line of the table."""
    refused = [run.measured.harmful.refusal for run in runs]
    margins = [run.measured.margin for run in runs]
    loss = np.mean([run.measured.benign_loss for run in runs])
    each = "  ".join(f"{share:.0%} {margin:.2f}" for share, margin in zip(refused, margins, strict=True))
    print(f"{name:<26}{np.mean(refused):>9.0%}{np.mean(margins):>14.2f}{loss:>13.3f}   {each}", flush=True)


if __name__ == "__main__":
    main()
