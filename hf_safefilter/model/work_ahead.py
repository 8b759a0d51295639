"""Work on the next part while this one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def ahead(parts: Sequence[Part], work: Callable[[Part], Result]) -> Iterator[Result]:
    """The results of `work` on each part; the next one is computed in a thread while the caller uses this one."""
    if len(parts) <= 1:
        yield from map(work, parts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="safefilter") as executor:
        following = executor.submit(work, parts[0])
        for part in parts[1:]:
            result, following = following.result(), executor.submit(work, part)
            yield result
        yield following.result()
