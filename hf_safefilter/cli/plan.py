"""plan: the cost of embedding, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli.arguments import Column, Layers, Split, layers_of, pairs_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions, checked_reading

if TYPE_CHECKING:
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.plan import Device, Work

EXAMPLE = "hf-safefilter plan --model toy --layers 3 --num-rows 52000 --mean-tokens 250 --device h100 --price 2.5"

Devices = Annotated[
    list[str] | None, typer.Option("--device", help="cpu (this machine), h100, 8xa100, ...; may be repeated.")
]


@reads_a_model(without=("device", "attn", "stream_blocks", "backend"))
def plan(  # noqa: F811  (the command is named after what it makes)
    context: typer.Context,
    reading: ReadingOptions,
    layers: Layers,
    rows: Annotated[str | None, typer.Argument(help="Rows to count and sample: Hub id, file or folder.")] = None,
    num_rows: Annotated[int | None, typer.Option(min=1, help="Number of rows, if there are none to count.")] = None,
    mean_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean number of tokens in a row, if there are none to sample.")
    ] = None,
    device: Devices = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of one device for one hour, in any currency.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the time of a small sample on this machine.")
    ] = False,
    column: Column = None,
    split: Split = None,
) -> None:
    """Estimate operations, memory, disk, time and cost of embedding, from a configuration and at most a tokenizer."""
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.data.splits import count_rows
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.plan import Lengths, count_work, device_named, make_plan, number_and_name, sample_lengths
    from hf_safefilter.plan.devices import CPU
    from hf_safefilter.plan.estimate import duration
    from hf_safefilter.plan.lengths import limit
    from hf_safefilter.plan.work import read_config

    if calibrate and (rows is None or device):
        raise OptionError("--calibrate measures rows on this machine", fix="give rows, and leave --device out")
    names = device or ([] if calibrate else [CPU])
    for name in names:
        number_and_name(name)
    layer_list, columns = layers_of(layers), pairs_of(column, "--column")
    if rows is None and (num_rows is None or mean_tokens is None):
        raise OptionError(
            "the number of rows and their length are not known", fix="give rows, or --num-rows and --mean-tokens"
        )
    table: Any = load_rows(rows, split=split).rows if rows is not None else None
    devices = [device_named(name) for name in names]
    config = read_config(reading.model, reading.revision)
    work = count_work(config, layer_list, reading.position)
    n_rows = count_rows(table) if num_rows is None else num_rows
    if table is not None and mean_tokens is None:
        lengths = sample_lengths(table, reading, columns)
    else:
        assert mean_tokens is not None  # checked above
        window = checked_reading(reading)["window"]
        lengths = Lengths.uniform(n_rows, mean_tokens, reading.max_length or limit(config), window)
    if num_rows is not None and table is not None:
        lengths = replace(lengths, rows=num_rows)
    dtype: str = reading.dtype
    if calibrate:
        devices, dtype = _measured(context, EmbedLayers.of(reading, layer_list, columns), table, work)
    plan = make_plan(work, lengths, devices, dtype=dtype, price=price, measured=calibrate)
    printer = context.obj
    printer.message(
        f"{reading.model}: {work.blocks} of {work.n_blocks} blocks, {lengths.rows} rows of {lengths.mean:.4g} tokens"
        + (f" (mean of {lengths.sampled} sampled)" if lengths.sampled else "")
    )
    printer.table("Work", plan.formulas())
    lines = [
        {
            "device": estimate.device,
            "dtype": estimate.dtype,
            "share of peak": f"{estimate.share:.0%} {'measured' if estimate.measured else 'assumed'}",
            "rows/s": estimate.rows_per_second,
            "time": duration(estimate.seconds),
            "cost": estimate.cost,
            "per million rows": estimate.cost_per_million,
            "note": estimate.note,
        }
        for estimate in plan.devices
    ]
    printer.table("Time and cost, without start-up", lines)
    printer.report(
        {"plan": plan.to_json()},
        ids=[f"{estimate.device} {estimate.seconds:.1f}" for estimate in plan.devices],
        hint=f"hf-safefilter embed {rows or 'ROWS'} --model {reading.model} --layers {layers} --output embedded",
    )


def _measured(
    context: typer.Context, step: EmbedLayers, table: Any, work: Work
) -> tuple[list[tuple[int, Device]], str]:
    """This machine with its measured speed, and the number format in which it was measured."""
    from hf_safefilter.plan import calibrate
    from hf_safefilter.plan.devices import measured, this_device

    sample = calibrate(step, table, work)
    context.obj.message(
        f"measured: {sample.rows} rows, {sample.tokens} tokens in {sample.seconds:.2g} s, "
        f"{sample.speed / 1e9:.4g} GFLOP/s"
    )
    return [(1, measured(this_device(), step.dtype, sample.speed))], step.dtype
