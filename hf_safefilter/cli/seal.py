"""seal: learn a weight for every row from trusted rows, and score the rows by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.arguments import Column, Output, Rows, Split, pairs_of, reads_a_model
from hf_safefilter.data.shapes import with_ignored
from hf_safefilter.data.splits import require_free
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions

if TYPE_CHECKING:
    from hf_safefilter.cli.output import Printer
    from hf_safefilter.data.load_rows import Loaded
    from hf_safefilter.scores.seal import Lora, SealSelector

EXAMPLE = "hf-safefilter seal rows.jsonl trusted.jsonl --model toy --epochs 2 --output sealed"

_QUANTILES = ("0", "0.5", "1")


@reads_a_model(without=("position", "spans", "window", "too_long", "attn", "backend"))
def seal(
    context: typer.Context,
    rows: Rows,
    safe: Annotated[str, typer.Argument(help="Trusted rows: file, folder or Hub id.", show_default=False)],
    reading: ReadingOptions,
    output: Output,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of the model.")] = 1e-5,
    selector_optimiser: Annotated[str, typer.Option(help="adam (as published) or sgd (ours: less noise).")] = "adam",
    selector_learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the weights; 5e-3 for adam, 1 for sgd if left out.")
    ] = None,
    upper_weight: Annotated[float, typer.Option(help="Share of the trusted rows in the model's loss, 0 to 1.")] = 1.0,
    upper_weight_decay: Annotated[
        float, typer.Option(help="Subtracted from the upper weight after each epoch.")
    ] = 0.03,
    batch_size: Annotated[int, typer.Option(help="Rows in a step, over all processes.")] = 64,
    micro_batch: Annotated[int, typer.Option(help="Rows read at once; lower it if memory is short.")] = 8,
    activation: Annotated[str, typer.Option(help="softmax or sigmoid.")] = "softmax",
    auxiliary: Annotated[
        bool, typer.Option("--auxiliary", help="Algorithm 1: a second model beside the first.")
    ] = False,
    lora_rank: Annotated[int | None, typer.Option(help="Train adapters of this rank instead of all weights.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale of the adapters; their rank if left out.")] = None,
    lora_target: Annotated[
        list[str] | None, typer.Option(help="Layers that get an adapter: --lora-target q_proj --lora-target v_proj.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of rows and of the adapters.")] = 0,
    column: Column = None,
    safe_column: Annotated[list[str] | None, typer.Option(help="Like --column, for the trusted rows.")] = None,
    split: Split = None,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Shortest time between two checkpoints, in seconds.")
    ] = 300.0,
) -> None:
    """Learn how much weight each row may have in a model that stays good on trusted rows (SEAL), and score the rows.

    A run that was stopped is resumed by the same command. For several GPUs:
    torchrun --no-python --nproc-per-node 4 hf-safefilter seal ...
    """
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.scores.seal import SealOptions, fit_seal

    options = SealOptions(
        activation=activation, auxiliary=auxiliary, epochs=epochs, learning_rate=learning_rate,
        selector_optimiser=selector_optimiser, selector_learning_rate=selector_learning_rate, upper_weight=upper_weight,
        upper_weight_decay=upper_weight_decay, batch_size=batch_size, micro_batch=micro_batch,
        max_length=reading.max_length, dtype=reading.dtype, seed=seed,
    )  # fmt: skip
    loaded, columns = load_rows(rows, split=split), with_ignored(pairs_of(column, "--column"), reading.ignore)
    safe_columns = with_ignored(pairs_of(safe_column, "--safe-column"), reading.ignore)
    _require_outputs(output, loaded.rows)
    trusted = load_rows(safe)
    selector = fit_seal(
        reading.model, loaded.rows, trusted.rows, options=options,
        lora=_lora(lora_rank, lora_alpha, lora_target),
        revision=reading.revision, columns=columns, safe_columns=safe_columns,
        chat_template=reading.chat_template, device=reading.device, checkpoints=output / "checkpoints",
        checkpoint_seconds=checkpoint_seconds,
    )  # fmt: skip
    trusted.require_unchanged()
    loaded.require_unchanged()
    if _is_first():
        _write(selector, loaded, columns, output)
        _report(context.obj, selector, output)


def _require_outputs(output: Path, rows: Any) -> None:
    """Raise before hours of training, not after them, if the result could not be written."""
    from hf_safefilter.saved.saved_rows import TRAIL
    from hf_safefilter.scores.seal.score import COLUMNS
    from hf_safefilter.storage.artifacts import MANIFEST
    from hf_safefilter.storage.atomic import require_replaceable

    for name, marker in (("selector", MANIFEST), ("scored", TRAIL)):
        require_replaceable(output / name, marker)
    require_free(rows, COLUMNS)


def _lora(rank: int | None, alpha: float | None, targets: list[str] | None) -> Lora | None:
    from hf_safefilter.scores.seal import Lora

    if rank is None:
        if alpha is not None or targets:
            raise OptionError("--lora-alpha and --lora-target need --lora-rank", fix="e.g. --lora-rank 16")
        return None
    lora = Lora(rank, rank if alpha is None else alpha)
    return replace(lora, targets=tuple(targets)) if targets else lora


def _write(selector: SealSelector, loaded: Loaded, columns: dict[str, str] | None, output: Path) -> None:
    from hf_safefilter.engine.local import score_rows
    from hf_safefilter.saved.saved_rows import save_rows
    from hf_safefilter.scores.seal import SealScore
    from hf_safefilter.storage.atomic import atomic_text

    selector.save(output / "selector")
    atomic_text(output / "report.json", json.dumps(selector.report(), indent=1) + "\n")
    step = SealScore(selector, columns)
    save_rows(
        score_rows(loaded.rows, step), output / "scored", [step], name=loaded.name, revision=loaded.revision,
        recheck=loaded.require_unchanged,
    )  # fmt: skip


def _report(printer: Printer, selector: SealSelector, output: Path) -> None:
    printer.table(
        "Epochs: mean losses (of the trusted rows, the rows, the weighted rows) and quantiles of the weights p",
        [_line(epoch) for epoch in selector.epochs()],
    )
    printer.table("Keeping the rows with the largest weights", selector.keep_curve())
    for name, side in (("Rows", "rows"), ("Trusted rows", "safe_rows")):
        printer.table(name, [{"": kind, "rows": count} for kind, count in selector.facts[side].items()])
    printer.report(
        {"output": str(output), "digest": selector.digest, "report": selector.report()},
        ids=[str(output / "scored")],
        hint=f"hf-safefilter select {output / 'scored'} --by seal_score --drop-fraction 0.2 --output decided",
    )


def _line(epoch: dict[str, Any]) -> dict[str, Any]:
    means = {name: epoch[f"{name}_loss"] for name in ("safe", "row", "weighted")}
    weights = epoch["weights"]
    quantiles = {f"p {float(share):.0%}": weights[share] for share in _QUANTILES if share in weights}
    return {"epoch": epoch["epoch"], "u": epoch["u"]} | means | quantiles


def _is_first() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
