"""embed: read layers of a model for every row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_safefilter.checks import require_whole
from hf_safefilter.cli.arguments import Column, Layers, Output, Rows, Split, layers_of, pairs_of, reads_a_model
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions

if TYPE_CHECKING:
    from hf_safefilter.data.load_rows import Loaded
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.saved.shards import Shard

EXAMPLE = "hf-safefilter embed rows.jsonl --model toy --layers 3,4 --output embedded"


@reads_a_model()
def embed(
    context: typer.Context,
    rows: Rows,
    reading: ReadingOptions,
    layers: Layers,
    output: Output,
    column: Column = None,
    split: Split = None,
    shard: Annotated[int | None, typer.Option(help="Embed only this part of the rows, counted from 0.")] = None,
    num_shards: Annotated[int | None, typer.Option(help="Number of parts that the rows are split into.")] = None,
    num_proc: Annotated[int, typer.Option(help="Number of processes on this machine: one for each GPU.")] = 1,
) -> None:
    """Read chosen layers of a model for every row and write a `save_to_disk` folder.

    With --shard and --num-shards several machines share the work: each writes its part under --output, and `merge`
    joins them. A job that was killed is resumed by the same command.
    """
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.engine.local import reading_counts, warn_of_unscorable
    from hf_safefilter.engine.local_processes import embed_in_processes
    from hf_safefilter.saved.saved_rows import TRAIL, save_rows
    from hf_safefilter.saved.shards import Shard
    from hf_safefilter.storage.atomic import require_replaceable

    if (shard is None) != (num_shards is None):
        raise OptionError("--shard and --num-shards are used together", fix="use e.g. --shard 0 --num-shards 8")
    require_whole("num_proc", num_proc, least=1)
    layer_list, columns = layers_of(layers), pairs_of(column, "--column")
    part = Shard(shard, num_shards) if shard is not None and num_shards is not None else None
    if part is None:
        require_replaceable(output, TRAIL)
    loaded = load_rows(rows, split=split)
    step = EmbedLayers.of(reading, layer_list, columns)
    if part is not None:
        _embed_part(context, loaded, step, output, part, num_proc)
        return
    embedded = embed_in_processes(loaded.rows, step, num_proc)
    save_rows(embedded, output, [step], name=loaded.name, revision=loaded.revision, recheck=loaded.require_unchanged)
    facts = {"output": str(output), "layers": list(step.layers), "revision": step.revision} | reading_counts(embedded)
    first = step.layers[0]
    warn_of_unscorable(embedded)
    context.obj.report(
        facts,
        ids=[str(output)],
        hint=f"hf-safefilter reference starter --model {reading.model} --layers {first} --output refs, then "
        f"hf-safefilter score {output} --method larf --layer {first} --references refs --output scored",
    )


def _embed_part(
    context: typer.Context, loaded: Loaded, step: EmbedLayers, output: Path, part: Shard, num_proc: int
) -> None:
    from hf_safefilter.engine.local_processes import embed_in_processes
    from hf_safefilter.saved.shards import embed_shard

    folder, existed = embed_shard(
        loaded, step, output, part, lambda rows, embed: embed_in_processes(rows, embed, num_proc)
    )
    context.obj.report(
        {"output": str(folder), "shard": part.index, "of": part.count, "done before": existed},
        ids=[str(folder)],
        hint=f"when all {part.count} are embedded: hf-safefilter merge {output} --output embedded",
    )
