"""Engines: other places than this process where steps are carried out over the rows of a set.

An engine is handed rows and steps and gives back the new columns, in the rows' order. How is its own affair; what it
must never do is lose a row, take one twice, or give other values than the plain way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hf_safefilter.engine.ordered import NewColumns

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.step import Step

__all__ = ["Engine", "NewColumns"]


class Engine(Protocol):
    """What `purify` asks of an engine."""

    def columns(self, rows: Any, steps: Sequence[Step], bring: Sequence[str]) -> NewColumns:
        """The columns `bring` after all `steps`, one after the other, for every row of one data set or stream.

        Args:
            rows: `Dataset` or `IterableDataset`.
            steps: each may need the columns of those before it.
            bring: of the rows' own columns and those of the steps; the others stay where they were computed.
        """
        ...

    def add(
        self, rows: Dataset | DatasetDict, steps: Sequence[Step], *, without: Sequence[str] = ()
    ) -> Dataset | DatasetDict:
        """`rows` with the columns of `steps` beside their own, but for `without`."""
        ...
