"""card, push: from a decision to a published data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.options import Folder, License, Output, Source


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command(
        epilog="Example: hf-safefilter card decided --license cc-by-4.0 --source tatsu-lab/alpaca --output out"
    )(card)
    app.command(epilog="Example: hf-safefilter push out me/alpaca-safe")(push)


def card(
    context: typer.Context,
    decided: Folder,
    license: License,
    source: Source,
    output: Output,
    effect: Annotated[Path | None, typer.Option(help="Folder written by effect on this decision.")] = None,
    include_text: Annotated[bool, typer.Option(help="Put the text of dropped rows into dropped.parquet.")] = False,
) -> None:
    """Write the publishable folder of a decision: kept rows, dropped list, card, provenance and plots."""
    from hf_safefilter.decision import read_decision
    from hf_safefilter.effect import read_card_part
    from hf_safefilter.publish.folder import write_folder
    from hf_safefilter.publish.gather import gather

    saved, is_safe = read_decision(decided)
    provenance = gather(
        saved.rows, is_safe, license=license, source=source, source_revision=saved.revision, steps=saved.steps,
        effect=read_card_part(effect) if effect is not None else None,
    )  # fmt: skip
    write_folder(output, saved.rows, is_safe, provenance, include_text=include_text)
    context.obj.report(
        {"output": str(output), "card": str(output / "README.md")},
        ids=[str(output)],
        hint=f"hf-safefilter push {output} me/my-set",
    )


def push(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder written by run or card.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="Hub id to push to.", show_default=False)],
    public: Annotated[bool, typer.Option(help="Make a new repository public; private if left out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not show the card and ask.")] = False,
) -> None:
    """Publish a folder written by run or card, in one commit."""
    from hf_safefilter.publish.hub import push_folder

    if not yes:
        context.obj.say((folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else "")
        typer.confirm(f"Push {folder} to {repo} ({'public' if public else 'private'} if new)?", abort=True, err=True)
    done = push_folder(folder, repo, private=not public)
    context.obj.report({"repo": repo, "commit": done.oid, "url": done.url}, ids=[done.url])
