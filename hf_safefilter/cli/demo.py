"""demo: the main job on the toy model."""

from __future__ import annotations

from pathlib import Path

import typer

from hf_safefilter.cli.arguments import Output
from hf_safefilter.cli.run import carry_out

EXAMPLE = "hf-safefilter demo --output demo"


def demo(context: typer.Context, output: Output = Path("demo")) -> None:
    """See the main job on the toy model: a mixed set in, a clean set with a card out. Offline, under a minute."""
    from hf_safefilter.demo import prepare

    voice = context.obj
    voice.say("Benign rows with planted unsafe ones, alike in length; the toy model; references of the same domain.")
    recipe = prepare(output)
    carry_out(voice, recipe, output / "clean")
    voice.say(f"Plots: {output / 'clean' / 'plots'}. The recipe: {output / 'recipe.yaml'}; change it and run it again.")
