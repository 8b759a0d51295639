"""push: a publishable folder to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "hf-safefilter push out me/alpaca-safe"


def push(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder written by run or card.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="Hub id to push to.", show_default=False)],
    public: Annotated[bool, typer.Option(help="Make a new repository public; private if left out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not show the card and ask.")] = False,
) -> None:
    """Publish a folder written by run or card, in one commit."""
    from hf_safefilter.publish.push import push_folder

    if not yes:
        context.obj.say((folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else "")
        typer.confirm(f"Push {folder} to {repo} ({'public' if public else 'private'} if new)?", abort=True, err=True)
    done = push_folder(folder, repo, private=not public)
    context.obj.report({"repo": repo, "commit": done.oid, "url": done.url}, ids=[done.url])
