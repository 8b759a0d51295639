"""methods: the scores there are."""

from __future__ import annotations

import typer

EXAMPLE = "hf-safefilter methods"


def methods(context: typer.Context) -> None:
    """List the scores: what each measures, what it requires, and the paper it comes from."""
    from hf_safefilter.scores import METHODS, method

    rows = [
        {"name": name, "class": kind.__name__, "measures": kind.MEASURES, "requires": kind.REQUIRES,
         "source": kind.SOURCE}
        for name, kind in ((name, method(name)) for name in METHODS)
    ]  # fmt: skip
    context.obj.table("Scores (higher = more dangerous to alignment)", rows)
    context.obj.report(
        {"methods": rows}, ids=list(METHODS), hint="hf-safefilter score --help, or hf-safefilter compare --help"
    )
