"""freeze: how to keep the blocks that carry safety unchanged while a model is tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_safefilter.cli.arguments import Blocks, blocks_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ModelOptions

EXAMPLE = "hf-safefilter freeze toy --blocks 1-2 --lora"


@reads_a_model(argument=True, without=("dtype", "device", "chat_template"))
def freeze(
    context: typer.Context,
    options: ModelOptions,
    blocks: Blocks = None,
    search: Annotated[
        Path | None, typer.Option("--found", help="Folder written by locate, instead of --blocks.")
    ] = None,
    include_norms: Annotated[bool, typer.Option(help="Freeze the norms of these blocks too.")] = False,
    lora: Annotated[
        bool, typer.Option("--lora", help="Print the LoraConfig that leaves these blocks unchanged.")
    ] = False,
) -> None:
    """Print how to freeze a range of blocks of a model (SPPFT): counts, and the settings to tune with."""
    from hf_safefilter.freeze import freezing_plan, lora_settings
    from hf_safefilter.locate.safety_layers import SafetyLayers

    if search is not None and blocks is None:
        block_range = SafetyLayers.load(search).block_range
    elif blocks is not None and search is None:
        block_range = blocks_of(blocks, "--blocks")
    else:
        raise OptionError("freeze needs a range of blocks", fix="give either --blocks 6-12 or --found FOLDER")
    first, last = block_range
    plan = freezing_plan(options.model, first, last, include_norms=include_norms, revision=options.revision, lora=lora)
    settings: dict[str, Any] = {"first": first, "last": last, "include_norms": include_norms}
    if lora:
        settings = lora_settings(options.model, first, last, revision=options.revision)
    code = (
        f"model = get_peft_model(model, LoraConfig(task_type='CAUSAL_LM', **{json.dumps(settings)}))"
        if lora
        else f"freeze_safety_blocks(model, {first}, {last}, include_norms={include_norms})"
    )
    context.obj.report(
        plan.to_json() | {"settings": settings, "python": code},
        ids=[json.dumps(settings)],
        hint="put the line above before the Trainer, and add FrozenBlocks(...) from hf_safefilter to its callbacks",
    )
