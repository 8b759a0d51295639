"""A few refusals beside the kept rows: an arm that repairs where the others only remove (arXiv 2510.21885)."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, zip_longest

from hf_safefilter.data.conversations import Conversation, as_conversations

ADDED_SHARE = 0.01
"""Refusals for each kept row; the paper adds 0.05 to 0.5 % to sets that are far larger than those of a study."""


def diverse_refusals(count: int) -> tuple[Conversation, ...]:
    """The first `count` refusals of the starter set, one of each category in turn; all of them if these are fewer."""
    from hf_safefilter.starter import starter_rows

    by_category: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in starter_rows("safe"):
        by_category[row["category"]].append(row)
    in_turn = filter(None, chain.from_iterable(zip_longest(*by_category.values())))
    return tuple(as_conversations([{name: row[name] for name in ("prompt", "response")} for row in in_turn][:count]))
