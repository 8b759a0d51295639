"""review: a page in the browser for scored rows, on which people decide row by row."""

from __future__ import annotations

import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_safefilter.cli.arguments import Folder, ScoreColumn, TrustVectors

EXAMPLE = "hf-safefilter review scored --by larf_score --drop-fraction 0.1"


def review(
    context: typer.Context,
    scored: Folder,
    by: ScoreColumn = None,
    drop_fraction: Annotated[
        float | None,
        typer.Option(help="Start with this share of the scored rows above the threshold; 0.1 if left out."),
    ] = None,
    drop_count: Annotated[int | None, typer.Option(help="Start with this many rows above the threshold.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Start with this threshold.")] = None,
    decisions: Annotated[
        Path, typer.Option(help="File to which each decision is appended at once; an earlier one is gone on with.")
    ] = Path("decisions.jsonl"),
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that gets the rows when the page scores them again.")
    ] = Path("labelled"),
    who: Annotated[str | None, typer.Option(help="Who decides; the name of the user if left out.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on 127.0.0.1; a free one if left out.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    export_argilla: Annotated[
        Path | None, typer.Option(help="Serve nothing; write the rows with their decisions as Argilla records here.")
    ] = None,
    export_atlas: Annotated[
        Path | None, typer.Option(help="Serve nothing; write a Parquet file for Embedding Atlas here.")
    ] = None,
    take: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="Serve nothing; add the decisions of another log, or responses of Argilla records, to --decisions.",
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Write what the rows say into exports; it may be harmful.")
    ] = False,
    trust_vectors: TrustVectors = False,
) -> None:
    """Look at scored rows in the browser, move the threshold, and decide on single rows: keep, drop, mask, unsure.

    The page is served on 127.0.0.1 only, under an address with a random token, and asks no other machine for anything.
    What rows say is hidden until a key shows it. The page can ask for the rows whose label would change the score most,
    and score all rows again by what you have decided.
    """
    from hf_safefilter.errors import OptionError
    from hf_safefilter.labeling.rounds import user_name
    from hf_safefilter.review.exports import write_argilla, write_atlas
    from hf_safefilter.review.imports import read_decisions
    from hf_safefilter.review.review import Review
    from hf_safefilter.review.server import require_gradio, start

    exports = {write_argilla: export_argilla, write_atlas: export_atlas}
    asked = {write: path for write, path in exports.items() if path is not None}
    if text and not asked:
        raise OptionError("the page shows what a row says at a key", fix="leave out `text=True`, or name an export")
    if not asked and take is None:
        require_gradio()
    session = Review.of(scored, decisions, output=output, by=by, drop_fraction=drop_fraction, drop_count=drop_count,
                        threshold=threshold, trust_vectors=trust_vectors)  # fmt: skip
    facts: dict[str, Any] = {"decisions": str(decisions), "rows": len(session.rows)}
    if take is not None:
        people = [*session.overview()["reviewers"], who or user_name()]
        imported = read_decisions(take, people)
        facts |= session.take(imported.decisions) | {"without_turns": imported.without_turns}
    if asked:
        for write, path in asked.items():
            facts[path.suffix.lstrip(".") or "export"] = str(path)
            write(session, path, text=text)
        context.obj.report(facts, ids=[str(path) for path in asked.values()])
        return
    if take is not None:
        context.obj.report(facts, ids=[str(decisions)], hint=session.command(f"{session.is_safe.threshold:.6g}"))
        return
    running = start(session, who=who or user_name(), port=port)
    context.obj.report(facts | {"address": running.address}, ids=[running.address], hint="stop with Ctrl-C; "
                       f"then: {session.command(f'{session.is_safe.threshold:.6g}')}")  # fmt: skip
    sys.stdout.flush()  # a pipe gets the address now, not when the command ends
    if browser:
        webbrowser.open(running.address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        running.close()
