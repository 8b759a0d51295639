"""locate: which blocks carry a model's safety."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hf_safefilter.checks import require_choice
from hf_safefilter.cli.arguments import blocks_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ModelOptions

if TYPE_CHECKING:
    from hf_safefilter.locate.search import Method

EXAMPLE = "hf-safefilter locate toy --method scaling --over-refusal prompts.jsonl --output found"


@reads_a_model(argument=True)
def locate(
    context: typer.Context,
    options: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the result; a search that was killed is resumed from it.")
    ],
    method: Annotated[
        str, typer.Option(help="gap (one pass, no generation), scaling (LARF) or bounds (Safety Layers).")
    ] = "gap",
    normal: Annotated[str | None, typer.Option(help="Everyday prompts, for gap and bounds.")] = None,
    malicious: Annotated[str | None, typer.Option(help="Harmful requests, for gap and bounds.")] = None,
    over_refusal: Annotated[
        str | None, typer.Option(help="Prompts that only sound harmful, for scaling and bounds.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this number of prompts of each kind.")] = None,
    refusals: Annotated[
        str | None, typer.Option(help="How refusals are recognised: broad, larf, qi2023 or safety_layers.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Largest number of tokens in a reply.")] = None,
    scales: Annotated[str | None, typer.Option(help="For scaling, e.g. 0.7,0.8,0.9,1.1,1.2,1.3.")] = None,
    initial: Annotated[str | None, typer.Option(help="For bounds: first range of blocks, e.g. 7-10.")] = None,
    alpha: Annotated[float | None, typer.Option(help="For bounds: the scale; a sweep finds it if left out.")] = None,
    include_o_proj: Annotated[
        bool, typer.Option(help="Scale the output projection of attention too; the published tables do not.")
    ] = True,
) -> None:
    """Find the blocks that carry a model's safety; writes locate.json and a plot."""
    from hf_safefilter.locate.search import OPTIONS, locate_safety_layers
    from hf_safefilter.locate.search_prompts import ASKED

    options_given: dict[str, Any] = {
        "refusals": refusals, "max_new_tokens": max_new_tokens, "scales": scales and _numbers(scales),
        "initial": initial and blocks_of(initial, "--initial"), "alpha": alpha,
        "include_o_proj": None if include_o_proj else False,
    }  # fmt: skip
    options_given = {name: value for name, value in options_given.items() if value is not None}
    require_choice("method", method, OPTIONS)
    known = {field.name for field in fields(OPTIONS[method])}
    if unknown := [name for name in options_given if name not in known]:
        flag = f"--{unknown[0].replace('_', '-')}"
        raise OptionError(f"{flag} is not an option of the method {method}", fix="leave it out")
    files = {"normal": normal, "malicious": malicious, "over_refusal": over_refusal}
    if unused := [kind.replace("_", "-") for kind, file in files.items() if file and kind not in ASKED[method]]:
        raise OptionError(
            f"the method {method} uses no {unused[0]} prompts",
            found=f"it uses {' and '.join(ASKED[method]).replace('_', '-')} prompts",
            fix=f"leave --{unused[0]} out, or choose another --method",
        )
    prompts = {kind: _prompts(file, kind)[:limit] for kind, file in files.items() if file or limit}
    layers = locate_safety_layers(
        options.model, prompts, cast("Method", method), options=OPTIONS[method](**options_given), folder=output,
        revision=options.revision, dtype=options.dtype, device=options.device, chat_template=options.chat_template,
    )  # fmt: skip
    printer = context.obj
    printer.table(f"{method}: measurements", layers.shown())
    if not layers.signal:
        printer.message(f"No signal: {layers.why}.")
    first, last = layers.first, layers.last
    facts: dict[str, Any] = {"output": str(output), "signal": layers.signal, "seconds": layers.facts["seconds"]}
    if layers.signal:
        facts |= {"first_block": first, "last_block": last, "layer": layers.layer}
    if counts := layers.facts.get("unscaled"):  # if all or none of them are refusals, no change can be seen
        facts["unscaled"] = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    printer.report(
        facts | {"found": layers.to_json()},
        ids=[str(layers.layer)] if layers.signal else [],
        hint=f"hf-safefilter embed rows.jsonl --model {options.model} --layers {layers.layer} --output embedded, or "
        f"hf-safefilter freeze {options.model} --blocks {first}-{last}"
        if layers.signal
        else None,
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--scales {text!r} is not a list of numbers", fix="use e.g. --scales 0.8,1.2") from error


def _prompts(file: str | None, kind: str) -> list[str]:
    if file is None:
        from hf_safefilter.locate.search_prompts import prompts_of_kind

        return list(prompts_of_kind(None, kind).texts)
    from hf_safefilter.data.prompts import prompts_at

    return list(prompts_at(file))
