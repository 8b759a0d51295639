"""compare: one data set scored by several methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_safefilter.cli import completion
from hf_safefilter.cli.arguments import Column, Output, Rows, Split, layers_of, pairs_of, reads_a_model, values_of
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_options import ReadingOptions
from hf_safefilter.scores import METHODS, method
from hf_safefilter.storage.atomic import atomic_folder, require_replaceable

if TYPE_CHECKING:
    from hf_safefilter.columns import Layer
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.recipe import MethodChoice
    from hf_safefilter.references import ReferenceIndex

EXAMPLE = "hf-safefilter compare rows.jsonl --model toy --methods larf,nearest,saft --label label --output compared"

_RECORD = "comparison.json"


@reads_a_model()
def compare(
    context: typer.Context,
    rows: Rows,
    reading: ReadingOptions,
    output: Output,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = (
        "ensemble,probe,shift,nearest,larf,direction,saft"
    ),
    references: Annotated[
        str, typer.Option(help="Folder or Hub id of a reference set, 'starter' for the set that ships, or 'none'.")
    ] = "starter",
    layer: Annotated[
        str, typer.Option(help="Layer to read; auto: for each method the best one on the references alone.")
    ] = "auto",
    label: Annotated[
        str | None, typer.Option(help="Column of labels to measure against.", autocompletion=completion.columns)
    ] = None,
    unsafe: Annotated[str, typer.Option(help="Label that means unsafe.")] = "unsafe",
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of a method, e.g. --option nearest.k=3 or --option seal.selector=F."),
    ] = None,
    column: Column = None,
    split: Split = None,
) -> None:
    """Score rows by several methods, and show what each finds, costs and agrees with, beside length and random."""
    from hf_safefilter.compare.compare_methods import compare_methods
    from hf_safefilter.compare.comparison import draw
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.model.source import TOY
    from hf_safefilter.saved.saved_rows import save_rows
    from hf_safefilter.scores.shift import at_prompt_too

    columns, choices = pairs_of(column, "--column"), _choices(methods, option)
    layers = None if layer == "auto" else layers_of(layer, "--layer")
    require_replaceable(output, _RECORD)
    loaded = load_rows(rows, split=split)
    names = [choice if isinstance(choice, str) else choice.name for choice in choices]
    embed, index = _embed_and_references(
        lambda layers, at_prompt: EmbedLayers.of(at_prompt_too(reading, names if at_prompt else ()), layers, columns),
        references, layers,
    )  # fmt: skip
    comparison = compare_methods(loaded.rows, choices, embed, index, label=label, unsafe=unsafe)
    with atomic_folder(output, marker=_RECORD) as folder:
        save_rows(
            comparison.scored, folder / "scored", comparison.steps, name=loaded.name, revision=loaded.revision,
            recheck=loaded.require_unchanged,
        )  # fmt: skip
        record = json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"
        (folder / _RECORD).write_text(record, encoding="utf-8")
        draw(comparison, folder / "comparison")
    printer = context.obj
    printer.table("Comparison of the methods", comparison.table())
    printer.table("Seconds (all methods that read hidden states share one embedding)", comparison.cost_table())
    printer.table("How the scores agree (rank correlation)", comparison.agreement_table())
    printer.table("Methods that could not be used", comparison.skipped_table())
    for sentence in comparison.sentences():
        printer.message(sentence)
    if comparison.best.verdict.bad:
        printer.note("none of these scores is to be trusted on these rows", warning=True)
        hint = "build references of your own domain, and compare again: hf-safefilter reference build --help"
    else:
        # Prompts of the starter set cannot be asked if they are the references; the toy model has questions of its own.
        prompts = "" if references != "starter" or reading.model == TOY else " --harmful PROMPTS"
        hint = (
            f"hf-safefilter effect {output / 'scored'} --by {comparison.best.column} --drop-fraction 0.05{prompts} "
            "--output effect"
        )
    printer.report(
        {"output": str(output), "rows": comparison.rows, "comparison": comparison.to_json()},
        ids=[json.dumps(line) for line in comparison.table()],
        hint=hint,
    )


def _choices(methods: str, options: list[str] | None) -> list[MethodChoice | str]:
    """Methods by name, each with its options from ``--option method.name=value``."""
    from hf_safefilter.recipe import MethodChoice

    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            method(name)  # says what it may have been
    by_method: dict[str, dict[str, Any]] = {}
    for key, value in values_of(options, "--option").items():
        owner, _, name = key.partition(".")
        if owner not in names or not name:
            raise OptionError(
                f"--option {key} belongs to none of the --methods",
                found=", ".join(names) or "no methods",
                fix="write --option method.name=value",
            )
        by_method.setdefault(owner, {})[name] = value
    return [MethodChoice.checked(name=name, options=by_method[name]) if name in by_method else name for name in names]


def _embed_and_references(
    embed_at: Callable[[Sequence[Layer], bool], EmbedLayers], references: str, layers: list[Layer] | None
) -> tuple[EmbedLayers, ReferenceIndex | None]:
    """The step that reads the rows at all layers to choose from, and the references, which are read the same way.

    `embed_at` takes the layers, and whether the end of the prompt may be read too. Without `layers` all are read.
    """
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.references.open import open_references, require_same_reading

    if references in ("starter", "none"):
        embed = embed_at(layers or embed_at([0], True).all_layers(), True)
        return embed, ReferenceIndex.starter(embed) if references == "starter" else None
    index = open_references(references)
    main = [name for name in index.layers if isinstance(name, int) or "_" not in name]
    embed = embed_at(layers or main, len(main) < len(index.layers))
    require_same_reading(index, embed)
    return embed, index
