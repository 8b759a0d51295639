"""What every step is: options that are its cache key, its repr and its provenance record, and a call on a batch.

A step is a frozen, slotted dataclass. `datasets` hashes an object by its class *name* and its fields, so a step holds
names and digests only (never a model, an index or an open file) and an `algorithm` number that is raised whenever the
code gives other values: a plain class attribute, or an edited method, would be invisible to the hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import numpy as np

from hf_safefilter.columns import embedding_columns
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.errors import MissingError

ROWS_PER_CALL = 1024
"""Rows that an engine passes to a step at once: enough to sort them by length, few enough to hold in memory."""

ROWS_BY_BLOCKS = 4 * ROWS_PER_CALL
"""The same for a model of which each block is loaded once a call: their vectors must have room in memory."""

_steps_by_column: dict[str, list[Step]] = {}


class Step:
    """Base of everything that goes into `Dataset.map` or `Dataset.filter`.

    Subclasses are ``@dataclass(frozen=True, slots=True)``, declare ``algorithm: int = field(default=1, init=False)``,
    and implement `compute` and `produces`. Their ``__post_init__`` ends with ``Step.__post_init__(self)``.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        # A NumPy number is equal to Python's, but it hashes differently and JSON does not know it.
        for option in fields_of(self):
            if isinstance(value := getattr(self, option.name), np.generic):
                object.__setattr__(self, option.name, value.item())
        # `datasets` does not record how a column was made, and the card must state it. So steps are remembered by the
        # columns they fill; what a card states is checked by scoring rows again before it is published.
        for column in self.produces():
            steps = _steps_by_column.setdefault(column, [])
            if self not in steps:
                steps.append(self)

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """The new columns for the rows of a batch, in their order; `rank` is what `with_rank=True` passes."""
        view = Batch(batch)
        return view.emit(self.compute(view, rank))

    def compute(self, batch: Batch, rank: int | None) -> Mapping[str, Column]:
        """The new columns, each with `batch.n` values along its first dimension."""
        raise NotImplementedError

    def produces(self) -> tuple[str, ...]:
        """Names of the columns this step adds."""
        raise NotImplementedError

    def needs(self) -> tuple[str, ...]:
        """Names of the columns that other steps must have filled: the vectors of `layer`, if the step has a `layer`."""
        layer = getattr(self, "layer", None)
        return () if layer is None else embedding_columns(layer)

    @property
    def rows_per_call(self) -> int:
        """Rows that an engine in this process passes to it at once."""
        return ROWS_PER_CALL

    def record(self) -> dict[str, Any]:
        """Class name and every field, as plain JSON values: what the card states and what is needed to run it again."""
        values = {option.name: getattr(self, option.name) for option in fields_of(self)}
        return {"step": type(self).__name__} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def fields_of(step: Step | type[Step]) -> tuple[Field[Any], ...]:
    """The fields of a step or of its class: its options, and `algorithm`."""
    return fields(step)  # type: ignore[arg-type]  # all subclasses are dataclasses


def steps_made(column: str) -> list[Step]:
    """The distinct steps constructed in this process that fill `column`.

    Raises:
        MissingError: There is none.
    """
    if column not in _steps_by_column:
        raise MissingError(
            f"no step in this process says how the column {column!r} was made",
            fix="construct the step that fills it before publishing, or pass `steps=[...]`",
        )
    return list(_steps_by_column[column])
