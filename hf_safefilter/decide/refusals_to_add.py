"""Refusals that are added to the kept rows: a few of them repair what removal alone does not (arXiv 2510.21885)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_safefilter.checks import require_whole
from hf_safefilter.errors import DataError


def diverse_refusals(
    count: int, rows: Sequence[Mapping[str, Any]] | None = None, dropped: Iterable[str] = ()
) -> list[Mapping[str, Any]]:
    """`count` of the refusals in `rows`, spread over the categories that were dropped.

    Categories that both sides have get refusals in proportion to the dropped rows. Without such a one, and for what a
    category lacks, all categories take turns.

    Args:
        count: Number of refusals.
        rows: Rows with prompt, response and perhaps a category; None: those of the starter set.
        dropped: Categories of the dropped rows.

    Raises:
        OptionError: `count` is no whole number from 1.
        DataError: There are fewer refusals.
    """
    from hf_safefilter.starter import starter_rows

    require_whole("count", count, least=1)
    rows = starter_rows("safe") if rows is None else rows
    if count > len(rows):
        raise DataError(f"there are {len(rows)} refusals, fewer than {count}", fix="add fewer, or name more of them")
    by_category: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_category[_name(row.get("category"))].append(place)
    wanted = Counter(name for name in map(_name, dropped) if name in by_category)
    chosen = [place for name, share in _shares(wanted, count).items() for place in by_category[name][:share]]
    taken = set(chosen)
    in_turn = sorted(
        (at, place)
        for places in by_category.values()
        for at, place in enumerate(place for place in places if place not in taken)
    )
    chosen += [place for _, place in in_turn[: count - len(chosen)]]
    return [rows[place] for place in chosen]


def _name(category: Any) -> str:
    return str(category or "").strip().casefold()


def _shares(wanted: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` in proportion to `wanted`, by largest remainders."""
    total = sum(wanted.values())
    exact = {name: count * share / total for name, share in wanted.items()}
    shares = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: (shares[name] - exact[name], name))[: count - sum(shares.values())]
    return {name: share + (name in rest) for name, share in shares.items()} if total else {}
