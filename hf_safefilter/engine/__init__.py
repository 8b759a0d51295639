"""Engines: ways to run steps over the rows of a data set elsewhere than in this process.

An engine gets rows and steps and returns the new columns, in the order of the rows. It must not lose a row, return one
twice, or return other values than this process would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from hf_safefilter.engine.ordered import NewColumns

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_safefilter.step import Step

__all__ = ["Engine", "NewColumns"]


class Engine(Protocol):
    """What `purify` requires of an engine."""

    def columns(self, rows: Dataset | IterableDataset, steps: Sequence[Step], names: Sequence[str]) -> NewColumns:
        """The columns `names` after all `steps`, one after the other, for every row of one data set or stream.

        Args:
            rows: A data set or stream without splits.
            steps: The steps; each may need the columns of those before it.
            names: Which of the rows' own columns and of the steps' columns to return; only these are transferred.
        """
        ...

    def add(
        self, rows: Dataset | DatasetDict, steps: Sequence[Step], *, without: Sequence[str] = ()
    ) -> Dataset | DatasetDict:
        """`rows` with the columns of `steps` added, except those in `without`."""
        ...
