"""cache: what the row cache holds, whether its files are whole, and making room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hf_safefilter.cache.upkeep import SpaceUsage

cache = typer.Typer(help="Look after the vectors that are cached between runs.", no_args_is_help=True)


@cache.command(epilog="Example: hf-safefilter cache ls")
def ls(context: typer.Context) -> None:
    """List what the cache holds, by model and reading options."""
    from hf_safefilter.cache.space import rows_root
    from hf_safefilter.cache.upkeep import spaces_in_use

    spaces = spaces_in_use()
    lines = [
        {
            "space": space.space[:12],
            "model": space.model,
            "revision": space.revision.removeprefix("sha256:")[:12],
            "spans": space.spans,
            "dtype": space.dtype,
            "layers": ",".join(space.layers),
            "parts": space.parts,
            "damaged": space.damaged,
            "MB": round(space.size / 1e6, 1),
            "note": _note(space),
        }
        for space in spaces
    ]
    context.obj.table("Cached rows", lines)
    size = sum(space.size for space in spaces)
    context.obj.report(
        {"folder": str(rows_root()), "MB": round(size / 1e6, 1), "spaces": lines},
        ids=[space.space for space in spaces],
        hint="hf-safefilter cache verify, or hf-safefilter cache prune --max-size 5GB",
    )


def _note(space: SpaceUsage) -> str:
    notes = ["references"] * space.references + ["of another version or user"] * (not space.current_format)
    return ", ".join(notes)


@cache.command(epilog="Example: hf-safefilter cache verify")
def verify(context: typer.Context) -> None:
    """Verify every part. What is damaged or rewritten is set aside, and read again when needed; exit code 1 if any."""
    from hf_safefilter.cache.upkeep import check

    whole, damaged = check()
    context.obj.report(
        {"whole": whole, "damaged": len(damaged), "set aside": [str(path) for path in damaged]},
        ids=[str(path) for path in damaged],
        hint="hf-safefilter cache prune --max-size 5GB" if damaged else None,
    )
    if damaged:
        raise typer.Exit(1)


@cache.command(epilog="Example: hf-safefilter cache prune --max-size 5GB")
def prune(
    context: typer.Context,
    max_size: Annotated[
        str, typer.Option(help="Size to keep, e.g. 5GB, 500MB or 0. The longest unused parts go first.")
    ],
) -> None:
    """Remove damaged and half-written files, then the parts that were unused for longest."""
    from hf_safefilter.cache.upkeep import prune as remove
    from hf_safefilter.cache.upkeep import size_of

    result = remove(size_of(max_size))
    context.obj.report(
        {"removed": result.removed, "freed MB": round(result.freed / 1e6, 1), "left MB": round(result.left / 1e6, 1)}
    )
