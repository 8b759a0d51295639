"""push: publish a folder on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Anyway, TrustVectors
from hf_safefilter.errors.redaction import shown

EXAMPLE = "hf-safefilter push out me/alpaca-safe"


def push(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder written by run or card.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="Hub id to push to.", show_default=False)],
    public: Annotated[bool, typer.Option(help="Make a new repository public; private if left out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Push without showing the card and asking.")] = False,
    anyway: Anyway = False,
    trust_vectors: TrustVectors = False,
) -> None:
    """Publish a folder written by run or card, in one commit."""
    from hf_safefilter.publish.push import push_folder

    if not yes:
        card = folder / "README.md"
        context.obj.message(card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "")
        question = f"Push {folder} to {repo} ({'public' if public else 'private'} if new)?"
        typer.confirm(shown(question), abort=True, err=True)
    pushed = push_folder(folder, repo, private=not public, anyway=anyway, trust_vectors=trust_vectors)
    context.obj.report({"repo": repo, "commit": pushed.oid, "url": pushed.url}, ids=[pushed.url])
