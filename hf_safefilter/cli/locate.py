"""locate, freeze: which blocks carry a model's safety, and how to keep them while tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_safefilter.cli.options import Device, Dtype, Revision, Template
from hf_safefilter.errors import OptionError

Named = Annotated[
    str, typer.Argument(help="Hub id, local folder, or 'toy' for the model that ships here.", show_default=False)
]
Blocks = Annotated[str | None, typer.Option(help="A range of blocks, the last one included, e.g. 6-12.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command(
        epilog="Example: hf-safefilter locate toy --method scaling --over-refusal prompts.jsonl --output found"
    )(locate)
    app.command(epilog="Example: hf-safefilter freeze toy --blocks 1-2 --lora")(freeze)


def locate(
    context: typer.Context,
    model: Named,
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
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    chat_template: Template = None,
) -> None:
    """Find the blocks that carry a model's safety; writes locate.json and a plot."""
    from hf_safefilter.locate.prompts import ASKED
    from hf_safefilter.locate.search import OPTIONS, locate_safety_layers

    given = {
        "refusals": refusals, "max_new_tokens": max_new_tokens, "scales": scales and _numbers(scales),
        "initial": initial and range_of(initial, "--initial"), "alpha": alpha,
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
        model, prompts, method, options=OPTIONS[method](**given), folder=output, revision=revision, dtype=dtype,
        device=device, chat_template=chat_template,
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
        hint=f"hf-safefilter embed rows.jsonl --model {model} --layers {found.layer} --output embedded, or "
        f"hf-safefilter freeze {model} --blocks {first}-{last}"
        if found.signal
        else None,
    )


def freeze(
    context: typer.Context,
    model: Named,
    blocks: Blocks = None,
    found: Annotated[Path | None, typer.Option(help="Folder written by locate, in place of --blocks.")] = None,
    include_norms: Annotated[bool, typer.Option(help="Freeze the norms of these blocks too.")] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Print the LoraConfig that leaves these blocks out.")] = False,
    revision: Revision = None,
) -> None:
    """Print how to freeze a range of blocks of a model (SPPFT): counts, and the settings to tune with."""
    from hf_safefilter.freeze import freezing_plan, lora_settings
    from hf_safefilter.locate.found import SafetyLayers

    if (blocks is None) == (found is None):
        raise OptionError("freeze needs a range of blocks", fix="give either --blocks 6-12 or --found FOLDER")
    if found is not None:
        result = SafetyLayers.load(found).require()
        first, last = result.first, result.last
    else:
        first, last = range_of(blocks, "--blocks")
    plan = freezing_plan(model, first, last, include_norms=include_norms, revision=revision)
    settings: dict[str, Any] = {"first": first, "last": last, "include_norms": include_norms}
    if lora:
        settings = lora_settings(model, first, last, revision=revision)
    code = (
        f"model = get_peft_model(model, LoraConfig(task_type='CAUSAL_LM', **{json.dumps(settings)}))"
        if lora
        else f"freeze_safety_blocks(model, {first}, {last}, include_norms={include_norms})"
    )
    facts = plan.to_json()
    context.obj.report(
        facts | {"settings": settings, "python": code},
        ids=[json.dumps(settings)],
        hint="put the line above before the Trainer, and FrozenBlocks(...) from hf_safefilter among its callbacks",
    )


def range_of(text: str, flag: str) -> tuple[int, int]:
    """``"6-12"`` -> ``(6, 12)``; ``"6"`` -> ``(6, 6)``."""
    first, sign, last = text.partition("-")
    if not first.isdecimal() or (sign and not last.isdecimal()):
        raise OptionError(f"{flag} {text!r} is not a range of blocks", fix=f"use e.g. {flag} 6-12")
    return int(first), int(last or first)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--scales {text!r} are no numbers", fix="use e.g. --scales 0.8,1.2") from error


def _prompts(place: str | None, kind: str) -> list[str]:
    if place is None:
        from hf_safefilter.locate.prompts import prompts_of as starter_prompts

        return list(starter_prompts(None, kind, kind).texts)
    from hf_safefilter.effect.questions import prompts_of
    from hf_safefilter.inputs import load_rows

    return list(prompts_of(load_rows(place).rows))
