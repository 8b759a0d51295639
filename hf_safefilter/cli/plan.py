"""plan: what embedding will take, before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_safefilter.cli.options import (
    Column,
    Dtype,
    Layers,
    MaxLength,
    Model,
    Position,
    Revision,
    Split,
    Template,
    layers_of,
    pairs_of,
)
from hf_safefilter.errors import OptionError

Devices = Annotated[
    list[str] | None, typer.Option("--device", help="cpu (this machine), h100, 8xa100, ...; may be given often.")
]


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command(
        epilog="Example: hf-safefilter plan --model toy --layers 3 --num-rows 52000 --mean-tokens 250 --device h100 "
        "--price 2.5"
    )(plan)


def plan(
    context: typer.Context,
    model: Model,
    layers: Layers,
    rows: Annotated[str | None, typer.Argument(help="Rows to count and sample: Hub id, file or folder.")] = None,
    num_rows: Annotated[int | None, typer.Option(help="How many rows, where none are given to count.")] = None,
    mean_tokens: Annotated[float | None, typer.Option(help="Tokens of a row, where none are given to sample.")] = None,
    device: Devices = None,
    price: Annotated[float | None, typer.Option(help="Of one device for one hour, in any currency.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Time a small sample on this machine.")] = False,
    revision: Revision = None,
    dtype: Dtype = "auto",
    position: Position = "last",
    max_length: MaxLength = None,
    chat_template: Template = None,
    column: Column = None,
    split: Split = None,
) -> None:
    """Say what embedding takes: operations, bytes, disk, time, cost; from a configuration and at most a tokenizer."""
    from hf_safefilter.inputs import load_rows
    from hf_safefilter.plan import Lengths, count_work, device_named, make_plan, sample_lengths
    from hf_safefilter.plan.estimate import duration
    from hf_safefilter.plan.rows import limit
    from hf_safefilter.plan.work import read_config

    if calibrate and (rows is None or device):
        raise OptionError("--calibrate times rows on this machine", fix="give rows, and leave --device out")
    named = [device_named(one) for one in device or ([] if calibrate else ["cpu"])]
    chosen = layers_of(layers)
    config = read_config(model, revision)
    work = count_work(config, chosen, position)
    columns = pairs_of(column, "--column")
    table: Any = load_rows(rows, split=split).rows if rows is not None else None
    if table is not None and mean_tokens is None:
        lengths = sample_lengths(
            table, model, revision=revision, columns=columns, position=position, max_length=max_length,
            chat_template=chat_template,
        )  # fmt: skip
    elif mean_tokens is None or (table is None and num_rows is None):
        raise OptionError("how many rows, and how long?", fix="give rows, or --num-rows and --mean-tokens")
    else:
        lengths = Lengths.told(num_rows if table is None else _count(table), mean_tokens, max_length or limit(config))
    if num_rows is not None and table is not None:
        lengths = Lengths(num_rows, lengths.mean, lengths.squared, lengths.sampled)
    if calibrate:
        named, dtype = _measured(context, model, chosen, table, work, revision, dtype, position, max_length,
                                 chat_template, columns)  # fmt: skip
    done = make_plan(work, lengths, named, dtype=dtype, price=price, measured=calibrate)
    voice = context.obj
    voice.say(
        f"{model}: {work.blocks} of {work.n_blocks} blocks, {lengths.rows} rows of {lengths.mean:.4g} tokens"
        + (f" (mean of {lengths.sampled} sampled)" if lengths.sampled else "")
    )
    voice.table("What it takes", done.formulas())
    shown = [
        {
            "device": one.device,
            "dtype": one.dtype,
            "share of peak": f"{one.share:.0%} {'measured' if one.measured else 'assumed'}",
            "rows/s": one.rows_per_second,
            "time": duration(one.seconds),
            "cost": one.cost,
            "per million rows": one.cost_per_million,
            "note": one.note,
        }
        for one in done.devices
    ]
    voice.table("How long, without start-up", shown)
    voice.report(
        {"plan": done.to_json()},
        ids=[f"{one.device} {one.seconds:.1f}" for one in done.devices],
        hint=f"hf-safefilter embed {rows or 'ROWS'} --model {model} --layers {layers} --output embedded",
    )


def _count(table: Any) -> int:
    return sum(map(len, table.values())) if hasattr(table, "values") else len(table)


def _measured(
    context: typer.Context,
    model: str,
    layers: list[int | str],
    table: Any,
    work: Any,
    revision: str | None,
    dtype: str,
    position: str,
    max_length: int | None,
    chat_template: str | None,
    columns: dict[str, str] | None,
) -> tuple[list[tuple[int, Any]], str]:
    """This machine with its measured share, and the number format it was measured in."""
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.plan import calibrate
    from hf_safefilter.plan.devices import here, measured

    step = EmbedLayers(
        model, layers, revision=revision, dtype=dtype, position=position, max_length=max_length, columns=columns,
        chat_template=chat_template,
    )  # fmt: skip
    found = calibrate(step, table, work)
    context.obj.say(
        f"measured: {found.rows} rows, {found.tokens} tokens in {found.seconds:.2g} s, {found.speed / 1e9:.4g} GFLOP/s"
    )
    return [(1, measured(here(), step.dtype, found.speed))], step.dtype
