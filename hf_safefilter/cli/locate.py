"""locate: which blocks carry a model's safety."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_safefilter.cli.arguments import blocks_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ModelOptions

EXAMPLE = "hf-safefilter locate toy --method scaling --over-refusal prompts.jsonl --output found"


@reads_a_model(argument=True)
def locate(
    context: typer.Context,
    options: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the result; a killed search goes on from what is there.")
    ],
    method: Annotated[
        str, typer.Option(help="gap (one pass, no generation), scaling (LARF) or bounds (Safety Layers).")
    ] = "gap",
    normal: Annotated[str | None, typer.Option(help="Everyday prompts, for gap and bounds.")] = None,
    malicious: Annotated[str | None, typer.Option(help="Harmful requests, for gap and bounds.")] = None,
    over_refusal: Annotated[
        str | None, typer.Option(help="Prompts that only sound harmful, for scaling and bounds.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many prompts of each kind.")] = None,
    refusals: Annotated[
        str | None, typer.Option(help="How refusals are told: broad, larf, qi2023 or safety_layers.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where replies are cut.")] = None,
    scales: Annotated[str | None, typer.Option(help="For scaling, e.g. 0.7,0.8,0.9,1.1,1.2,1.3.")] = None,
    initial: Annotated[str | None, typer.Option(help="For bounds: range to start from, e.g. 7-10.")] = None,
    alpha: Annotated[float | None, typer.Option(help="For bounds: the scale; found by a sweep if left out.")] = None,
    include_o_proj: Annotated[
        bool, typer.Option(help="Scale attention's output projection too; the published tables did not.")
    ] = True,
) -> None:
    """Find the blocks that carry a model's safety; writes locate.json and a plot."""
    from hf_safefilter.locate.search import OPTIONS, locate_safety_layers
    from hf_safefilter.locate.search_prompts import ASKED

    given = {
        "refusals": refusals, "max_new_tokens": max_new_tokens, "scales": scales and _numbers(scales),
        "initial": initial and blocks_of(initial, "--initial"), "alpha": alpha,
        "include_o_proj": None if include_o_proj else False,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if method not in OPTIONS:
        raise OptionError(f"method {method!r} is not known", fix=f"use one of {', '.join(OPTIONS)}")
    foreign = [name for name in given if name not in OPTIONS[method].__dataclass_fields__]
    if foreign:
        raise OptionError(f"--{foreign[0].replace('_', '-')} is no option of the method {method}", fix="leave it out")
    files = {"normal": normal, "malicious": malicious, "over_refusal": over_refusal}
    unasked = [kind for kind, place in files.items() if place and kind not in ASKED[method]]
    if unasked:
        raise OptionError(
            f"the method {method} asks no {unasked[0].replace('_', '-')} prompts",
            found=f"it asks {' and '.join(ASKED[method]).replace('_', '-')} ones",
            fix=f"leave --{unasked[0].replace('_', '-')} out, or choose another --method",
        )
    prompts = {kind: _prompts(place, kind)[:limit] for kind, place in files.items() if place or limit}
    found = locate_safety_layers(
        options.model, prompts, method, options=OPTIONS[method](**given), folder=output, revision=options.revision,
        dtype=options.dtype, device=options.device, chat_template=options.chat_template,
    )  # fmt: skip
    voice = context.obj
    voice.table(f"{method}: what was measured", found.shown())
    if not found.signal:
        voice.say(f"No signal: {found.why}.")
    first, last = found.first, found.last
    shown: dict[str, Any] = {"output": str(output), "signal": found.signal, "seconds": found.facts["seconds"]}
    if found.signal:
        shown |= {"first_block": first, "last_block": last, "layer": found.layer}
    if counts := found.facts.get("unscaled"):  # all or none of them refused: nothing could be seen to move
        shown["unscaled"] = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    voice.report(
        shown | {"found": found.to_json()},
        ids=[str(found.layer)] if found.signal else [],
        hint=f"hf-safefilter embed rows.jsonl --model {options.model} --layers {found.layer} --output embedded, or "
        f"hf-safefilter freeze {options.model} --blocks {first}-{last}"
        if found.signal
        else None,
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--scales {text!r} are no numbers", fix="use e.g. --scales 0.8,1.2") from error


def _prompts(place: str | None, kind: str) -> list[str]:
    if place is None:
        from hf_safefilter.locate.search_prompts import prompts_of

        return list(prompts_of(None, kind, kind).texts)
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.data.prompts import prompts_in

    return list(prompts_in(load_rows(place).rows))
