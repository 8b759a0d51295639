"""push: publish a folder on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_safefilter.cli.arguments import Anyway, TrustVectors

EXAMPLE = "hf-safefilter push out me/alpaca-safe"


def push(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder written by run or card.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="Hub id to push to.", show_default=False)],
    public: Annotated[bool, typer.Option(help="Make a new repository public; private if left out.")] = False,
    anyway: Anyway = False,
    trust_vectors: TrustVectors = False,
) -> None:
    """Publish a folder written by run or card, in one commit; --yes publishes it without a question."""
    from hf_safefilter.publish.push import checked_folder, push_folder
    from hf_safefilter.storage.hub_commit import logged_in_as

    user = logged_in_as(repo)
    ready = checked_folder(folder, anyway=anyway, trust_vectors=trust_vectors)
    for name, value in ready.summary().items():
        context.obj.message(f"{name}: {value}")
    context.obj.confirm(f"Push {folder} to {repo} ({'public' if public else 'private'} if new), as {user}?")
    pushed = push_folder(folder, repo, private=not public, anyway=anyway, trust_vectors=trust_vectors)
    context.obj.report(
        {"repo": repo, "commit": pushed.oid, "url": pushed.url},
        ids=[pushed.url],
        hint=f"hf-safefilter verify {repo} --source ROWS",
    )
