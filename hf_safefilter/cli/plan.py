"""plan: what embedding will take, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.arguments import Column, Layers, Split, layers_of, pairs_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions

if TYPE_CHECKING:
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.plan import Device, Work

EXAMPLE = "hf-safefilter plan --model toy --layers 3 --num-rows 52000 --mean-tokens 250 --device h100 --price 2.5"

Devices = Annotated[
    list[str] | None, typer.Option("--device", help="cpu (this machine), h100, 8xa100, ...; may be given often.")
]


@reads_a_model(without=("device", "attn"))
def plan(
    context: typer.Context,
    reading: ReadingOptions,
    layers: Layers,
    rows: Annotated[str | None, typer.Argument(help="Rows to count and sample: Hub id, file or folder.")] = None,
    num_rows: Annotated[int | None, typer.Option(help="How many rows, where none are given to count.")] = None,
    mean_tokens: Annotated[float | None, typer.Option(help="Tokens of a row, where none are given to sample.")] = None,
    device: Devices = None,
    price: Annotated[float | None, typer.Option(help="Of one device for one hour, in any currency.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Time a small sample on this machine.")] = False,
    column: Column = None,
    split: Split = None,
) -> None:
    """Say what embedding takes: operations, bytes, disk, time, cost; from a configuration and at most a tokenizer."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.data.splits import count_rows
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.plan import Lengths, count_work, device_named, make_plan, sample_lengths
    from hf_safefilter.plan.estimate import duration
    from hf_safefilter.plan.lengths import limit
    from hf_safefilter.plan.work import read_config

    if calibrate and (rows is None or device):
        raise OptionError("--calibrate times rows on this machine", fix="give rows, and leave --device out")
    named = [device_named(one) for one in device or ([] if calibrate else ["cpu"])]
    chosen = layers_of(layers)
    config = read_config(reading.model, reading.revision)
    work = count_work(config, chosen, reading.position)
    columns = pairs_of(column, "--column")
    table: Any = load_rows(rows, split=split).rows if rows is not None else None
    if table is not None and mean_tokens is None:
        lengths = sample_lengths(table, reading, columns)
    elif mean_tokens is None or (table is None and num_rows is None):
        raise OptionError("how many rows, and how long?", fix="give rows, or --num-rows and --mean-tokens")
    else:
        lengths = Lengths.told(
            num_rows if table is None else count_rows(table), mean_tokens, reading.max_length or limit(config)
        )
    if num_rows is not None and table is not None:
        lengths = Lengths(num_rows, lengths.mean, lengths.squared, lengths.sampled)
    dtype: str = reading.dtype
    if calibrate:
        named, dtype = _measured(context, EmbedLayers.of(reading, chosen, columns), table, work)
    done = make_plan(work, lengths, named, dtype=dtype, price=price, measured=calibrate)
    voice = context.obj
    voice.say(
        f"{reading.model}: {work.blocks} of {work.n_blocks} blocks, {lengths.rows} rows of {lengths.mean:.4g} tokens"
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
        hint=f"hf-safefilter embed {rows or 'ROWS'} --model {reading.model} --layers {layers} --output embedded",
    )


def _measured(
    context: typer.Context, step: EmbedLayers, table: Any, work: Work
) -> tuple[list[tuple[int, Device]], str]:
    """This machine with its measured share, and the number format it was measured in."""
    from hf_safefilter.plan import calibrate
    from hf_safefilter.plan.devices import here, measured

    sample = calibrate(step, table, work)
    context.obj.say(
        f"measured: {sample.rows} rows, {sample.tokens} tokens in {sample.seconds:.2g} s, "
        f"{sample.speed / 1e9:.4g} GFLOP/s"
    )
    return [(1, measured(here(), step.dtype, sample.speed))], step.dtype
