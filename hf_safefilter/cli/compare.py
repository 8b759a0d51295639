"""compare: one data set scored by several methods, side by side."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from hf_safefilter.cli.arguments import Column, Output, Rows, Split, layers_of, pairs_of, reads_a_model, values_of
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions
from hf_safefilter.storage.atomic import atomic_folder, require_replaceable

EXAMPLE = "hf-safefilter compare rows.jsonl --model toy --methods larf,nearest,saft --label label --output compared"

_RECORD = "comparison.json"


@reads_a_model()
def compare(
    context: typer.Context,
    rows: Rows,
    reading: ReadingOptions,
    output: Output,
    methods: Annotated[str, typer.Option(help="Names, with commas between them.")] = "larf,nearest,direction,saft",
    references: Annotated[
        str, typer.Option(help="Folder or Hub id of a reference set, 'starter' for the one that ships, or 'none'.")
    ] = "starter",
    layer: Annotated[
        str, typer.Option(help="Which layer to read; auto: for each method the best one on the references alone.")
    ] = "auto",
    label: Annotated[str | None, typer.Option(help="Column with labels to measure against.")] = None,
    unsafe: Annotated[str, typer.Option(help="Label that means unsafe.")] = "unsafe",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of a method, e.g. --option nearest.k=3 or --option seal.selector=F."),
    ] = None,
    column: Column = None,
    split: Split = None,
) -> None:
    """Score rows by several methods; say what each finds, costs and agrees with, beside length and random."""
    from hf_safefilter.compare.compare_methods import compare_methods
    from hf_safefilter.compare.comparison import draw
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.model.source import TOY
    from hf_safefilter.saved.saved_rows import save_rows
    from hf_safefilter.scores import CONTROLS

    def reader(layers: list[int | str]) -> EmbedLayers:
        return EmbedLayers.of(reading, layers, pairs_of(column, "--column"))

    choices = _choices(methods, option)
    require_replaceable(output, _RECORD)
    loaded = load_rows(rows, split=split)
    embed, index = _read(reader, references, layer)
    found = compare_methods(loaded.rows, choices, embed, index, label=label, unsafe=unsafe)
    with atomic_folder(output, marker=_RECORD) as folder:
        save_rows(found.scored, folder / "scored", found.steps, name=loaded.name, revision=loaded.revision)
        (folder / _RECORD).write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        draw(found, folder / "comparison")
    voice = context.obj
    voice.table("Side by side", found.table())
    voice.table("Seconds (all methods that read hidden states share one reading)", found.cost_table())
    voice.table("How the scores agree (rank correlation)", found.agreement_table())
    voice.table("Methods that could not be used", found.skipped_table())
    tried = [one for one in found.entries if one.method not in CONTROLS]
    best = max(tried, key=lambda one: one.separation.auroc if one.separation else 0.0)
    # the starter set's prompts cannot be asked again where they are the references; the toy has questions of its own
    asked = "" if references != "starter" or reading.model == TOY else " --harmful PROMPTS"
    voice.report(
        {"output": str(output), "rows": found.rows, "comparison": found.to_json()},
        ids=[json.dumps(line) for line in found.table()],
        hint=f"hf-safefilter effect {output / 'scored'} --by {best.column} --drop-fraction 0.05{asked} --output effect",
    )


def _choices(methods: str, options: list[str] | None) -> list[Any]:
    """Methods by name, each with the options given for it as ``--option method.name=value``."""
    from hf_safefilter.recipe import MethodChoice

    names = [name.strip() for name in methods.split(",") if name.strip()]
    given: dict[str, dict[str, Any]] = {}
    for key, value in values_of(options, "--option").items():
        method, _, name = key.partition(".")
        if method not in names or not name:
            raise OptionError(
                f"--option {key} belongs to none of the methods",
                found=", ".join(names) or "no methods",
                fix="write --option method.name=value",
            )
        given.setdefault(method, {})[name] = value
    return [MethodChoice.checked(name=name, options=given[name]) if name in given else name for name in names]


def _read(reader: Any, references: str, layer: str) -> tuple[Any, Any]:
    """How rows are read, at all layers to choose from, and the references read alike."""
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.references.open import open_references, require_same_reading

    named = None if layer == "auto" else layers_of(layer)
    if references in ("starter", "none"):
        embed = reader(named or reader([0]).all_layers())
        return embed, ReferenceIndex.starter(embed) if references == "starter" else None
    index = open_references(references)
    embed = reader(named or list(index.layers))
    require_same_reading(index, embed)
    return embed, index
