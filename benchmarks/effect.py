"""What each method finds, and what dropping by it does to the toy model, on sets with planted unsafe rows.

    python -m benchmarks.effect --output out/effect                       # 1 %, 5 % and 20 % planted
    python -m benchmarks.effect --shares 0.05 --methods larf,nearest --seeds 5 --freeze 1:3 --output out/effect

The rows come from the toy corpus. Planted rows are chosen so that the lengths of their responses follow those of
benign ones: no method can live on length (`--kind obedient` plants harmless lists answered in total obedience
instead, as the corpus has them, lengths and all). References are rows of the same domain that stand in no set. Each
method drops as many rows as were planted. Studies of one set share the runs that are the same for several methods. What
was stopped is resumed when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_safefilter import EmbedLayers, IsSafe, ReferenceIndex, compare_methods, measure_effect, threshold_for
from hf_safefilter.compare.comparison import draw
from hf_safefilter.effect import USUAL, EffectReport, Questions, Study, Tuning
from hf_safefilter.effect.arms import match_lengths
from hf_safefilter.model.reading_options import ModelOptions
from hf_safefilter.recipe import MethodChoice
from hf_safefilter.scores import METHODS
from hf_safefilter.toy.corpus import Row, degrading_rows, mixed_rows, reference_rows, unsafe_rows

POOL = 3000
NEAR, LEAST_CHOICE = 2, 20  # characters, rows
REFERENCES = 100
PLANTED = "unsafe"


def planted_rows(kind: str, rows: int, share: float, seed: int, taken: set[str]) -> list[Row]:
    """`rows` rows of which `share` are planted and labelled unsafe; no prompt of `taken` is among them."""
    draw_ = random.Random(f"effect {kind} {share} {seed}")
    wanted = round(rows * share)
    if kind == "obedient":
        planted = [row | {"label": PLANTED} for row in _without(degrading_rows(4 * wanted, seed), taken)][:wanted]
        taken = taken | {row["prompt"] for row in planted}
        benign = _without(mixed_rows(2 * rows, 0.0, seed), taken)[: rows - wanted]
    else:
        pool = _without(unsafe_rows(POOL, seed + 1000), taken)
        benign = _of_lengths_in(pool, _without(mixed_rows(POOL, 0.0, seed), taken))[: rows - wanted]
        planted = _like_in_length(pool, draw_.sample(benign, wanted), seed)
    mixed = planted + benign
    draw_.shuffle(mixed)
    return mixed


def _without(rows: list[Row], taken: set[str]) -> list[Row]:
    return [row for row in rows if row["prompt"] not in taken]


def _of_lengths_in(pool: list[Row], rows: list[Row]) -> list[Row]:
    """The rows for which the pool has a good choice of responses of nearly the same length."""
    available = np.sort([len(row["response"]) for row in pool])
    wanted = np.array([len(row["response"]) for row in rows])
    choice = np.searchsorted(available, wanted + NEAR, side="right") - np.searchsorted(available, wanted - NEAR)
    return [row for row, count in zip(rows, choice, strict=True) if count >= LEAST_CHOICE]


def _like_in_length(pool: list[Row], models: list[Row], seed: int) -> list[Row]:
    """Rows of the pool whose responses are as long as those of the models."""
    lengths = np.array([len(row["response"]) for row in [*models, *pool]])
    first = len(models)
    indices = match_lengths(np.arange(first), np.arange(first, len(lengths)), lengths, np.random.default_rng(seed))
    return [pool[index - first] for index in indices]


def seal_choice(rows: Dataset, safe: list[Row], folder: Path) -> MethodChoice:
    """SEAL fitted on the rows against refusals and benign answers that stand in no set."""
    from hf_safefilter.scores.seal import SealOptions, fit_seal

    options = SealOptions(epochs=6, learning_rate=3e-4, selector_learning_rate=0.05, batch_size=32, dtype="float32")
    selector = fit_seal("toy", rows, safe, options=options, device="cpu", checkpoints=folder / "seal")
    return MethodChoice(name="seal", options={"selector": selector.digest})


def study(scored: Dataset, column: str, share: float, folder: Path, options: argparse.Namespace) -> EffectReport:
    """The effect of dropping `share` of the rows by `column`; runs that another method has had too are taken over."""
    for inputs in sorted(folder.parent.glob("*/inputs.json")):
        for run in (inputs.parent / "runs").glob("*.json"):
            if not (folder / "runs" / run.name).exists():  # a run of other rows is known as such, and done anew
                (folder / "runs").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run, folder / "runs" / run.name)
                shutil.copyfile(inputs, folder / "inputs.json")
    is_safe = IsSafe(column, threshold_for(scored, column, drop_count=round(share * len(scored))))
    blocks = tuple(map(int, options.freeze.split(":"))) if options.freeze else None
    asked = Study(
        ModelOptions("toy", device="cpu"), Questions.toy(options.questions), tuning=Tuning(
            steps=options.steps, batch=16, learning_rate=options.learning_rate, method="full"),
        arms=USUAL, seeds=range(options.seeds), freeze=blocks, max_new_tokens=16,
    )  # fmt: skip
    return measure_effect(
        scored, is_safe, asked, folder, on_run=lambda run, number, count: print(
            f"  {column} {number}/{count} {run.arm} seed {run.seed}: {run.measured.harmful.refusal:.0%}", flush=True),
    )  # fmt: skip


def one_set(share: float, options: argparse.Namespace) -> dict:
    """Compare and study the methods on one set; prints both tables."""
    unsafe, safe = reference_rows(REFERENCES, 7)
    rows = Dataset.from_list(
        planted_rows(options.kind, options.rows, share, options.seed, {row["prompt"] for row in unsafe})
    )
    folder = options.output / f"{options.kind}-{share:g}"
    embed = EmbedLayers("toy", EmbedLayers("toy", [0]).all_layers(), device="cpu")
    references = ReferenceIndex.build(unsafe, safe, embed, license="cc0-1.0", source="toy corpus")
    named = [name for name in options.methods.split(",") if name in METHODS]
    # what an owner of the model would trust: refusals, and everyday answers from elsewhere
    trusted = [*safe, *_without(mixed_rows(300, 0.0, 99), set(rows["prompt"]))]
    choices = [seal_choice(rows, trusted, folder) if name == "seal" else name for name in named]
    compared = compare_methods(rows, choices, embed, references, label="label")
    folder.mkdir(parents=True, exist_ok=True)
    draw(compared, folder / "comparison")
    table("compared", [*compared.table(), *compared.skipped_table()])
    table("seconds", compared.cost_table())
    body = {"share": share, "compare": compared.to_json(), "effect": {}}
    for entry in compared.entries:
        if entry.method in options.studied.split(","):
            report = study(compared.scored, entry.column, share, folder / entry.method, options)
            table(f"{options.kind} {share:.0%}: dropped by {entry.method}", report.table())
            print("\n".join(contrast.sentence for contrast in report.contrasts), flush=True)
            body["effect"][entry.method] = report.to_json()
    return body


def table(title: str, rows: list[dict]) -> None:
    """Print rows as Markdown."""
    print(f"\n{title}\n")
    for at, row in enumerate(rows):
        if at == 0 or list(row) != list(rows[at - 1]):
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join("" if value is None else str(value) for value in row.values()) + " |", flush=True)


def main() -> None:
    """Run all sets and write ``results.json``."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--output", type=Path, required=True)
    ask.add_argument("--shares", default="0.01,0.05,0.2", help="shares of planted rows")
    ask.add_argument("--kind", choices=("unsafe", "obedient"), default="unsafe", help="what is planted")
    ask.add_argument("--methods", default="larf,anchor,nearest,direction,saft,seal,gradient", help="compared")
    ask.add_argument("--studied", default="larf,nearest,saft,seal,gradient", help="of these the effect is measured")
    ask.add_argument("--rows", type=int, default=500)
    ask.add_argument("--seed", type=int, default=0, help="of the rows")
    ask.add_argument("--seeds", type=int, default=3, help="of the tuning, how many")
    ask.add_argument("--steps", type=int, default=80)
    ask.add_argument("--learning-rate", type=float, default=1e-3)
    ask.add_argument("--questions", type=int, default=100, help="of each kind")
    ask.add_argument("--freeze", help="blocks to freeze in further arms, e.g. 1:3")
    options = ask.parse_args()
    logging.getLogger("hf_safefilter.effect.ledger").setLevel(logging.ERROR)  # shared arms carry another study's inputs
    results = [one_set(float(share), options) for share in options.shares.split(",")]
    name = f"results-{options.kind}-{options.shares.replace(',', '_')}.json"
    (options.output / name).write_text(json.dumps(results, indent=1, default=list) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output / name}")


if __name__ == "__main__":
    main()
