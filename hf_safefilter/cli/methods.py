"""methods: list the available scores."""

from __future__ import annotations

import typer

EXAMPLE = "hf-safefilter methods"


def methods(context: typer.Context) -> None:
    """List the scores: what each measures, what it requires, and the paper it comes from."""
    from hf_safefilter.scores import METHODS, method

    rows = [
        {"name": name, "class": score.__name__, "measures": score.MEASURES, "requires": score.REQUIRES,
         "source": score.SOURCE}
        for name, score in ((name, method(name)) for name in METHODS)
    ]  # fmt: skip
    context.obj.table("Scores (higher = more dangerous to alignment)", rows)
    context.obj.report(
        {"methods": rows}, ids=list(METHODS), hint="hf-safefilter score --help, or hf-safefilter compare --help"
    )
