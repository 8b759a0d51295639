"""cache: what the row cache holds, whether it is whole, and making room."""

from __future__ import annotations

from typing import Annotated

import typer

cache = typer.Typer(help="Look after the vectors that are kept between runs.", no_args_is_help=True)


@cache.command(epilog="Example: hf-safefilter cache ls")
def ls(context: typer.Context) -> None:
    """List what is kept, by model and way of reading."""
    from hf_safefilter.cache.space import rows_root
    from hf_safefilter.cache.upkeep import kept

    found = kept()
    shown = [
        {
            "space": one.space[:12],
            "model": one.model,
            "revision": one.revision.removeprefix("sha256:")[:12],
            "position": one.position,
            "dtype": one.dtype,
            "layers": ",".join(one.layers),
            "parts": one.parts,
            "damaged": one.damaged,
            "MB": round(one.size / 1e6, 1),
            "note": "" if one.ours else "of another version",
        }
        for one in found
    ]
    context.obj.table("Rows kept", shown)
    size = sum(one.size for one in found)
    context.obj.report(
        {"folder": str(rows_root()), "MB": round(size / 1e6, 1), "spaces": shown},
        ids=[one.space for one in found],
        hint="hf-safefilter cache verify, or hf-safefilter cache prune --max-size 5GB",
    )


@cache.command(epilog="Example: hf-safefilter cache verify")
def verify(context: typer.Context) -> None:
    """Verify every checksum; damaged parts are set aside, and their rows read again when needed. Exit code 1 if any."""
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
    max_size: Annotated[str, typer.Option(help="What may stay, e.g. 5GB, 500MB or 0. The longest unused goes first.")],
) -> None:
    """Remove what is damaged or half written, then what was not used for longest."""
    from hf_safefilter.cache.upkeep import prune as remove
    from hf_safefilter.cache.upkeep import size_of

    done = remove(size_of(max_size))
    context.obj.report(
        {"removed": done.removed, "freed MB": round(done.freed / 1e6, 1), "left MB": round(done.left / 1e6, 1)}
    )
