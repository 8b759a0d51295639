"""demo: filter a small mixed data set with the toy model."""

from __future__ import annotations

from pathlib import Path

import typer

from hf_safefilter.cli.arguments import Output
from hf_safefilter.cli.run import run_recipe

EXAMPLE = "hf-safefilter demo --output demo"


def demo(context: typer.Context, output: Output = Path("demo")) -> None:
    """Filter a small mixed data set with the toy model: a clean set with a card comes out. Offline, under a minute."""
    from hf_safefilter.demo import prepare

    printer = context.obj
    printer.message(
        "Benign rows with planted unsafe ones of the same lengths; the toy model; references of the same domain."
    )
    recipe = prepare(output)
    run_recipe(printer, recipe, output / "clean")
    printer.message(
        f"Plots: {output / 'clean' / 'plots'}. Recipe: {output / 'recipe.yaml'}; you can change it and run it again."
    )
