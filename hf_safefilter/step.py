"""What every step is: options that are its cache key, its repr and its provenance record, and a call on a batch.

A step is a frozen, slotted dataclass. `datasets` hashes an object by its class *name* and its fields, so a step holds
names and digests only (never a model, an index or an open file) and an `algorithm` number that is raised whenever the
code gives other values: a plain class attribute, or an edited method, would be invisible to the hash.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from hf_safefilter.columns import embedding_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.errors import MissingError

ROWS_PER_CALL = 1024
"""Rows a step is handed at once by whoever carries out many: enough to sort by length, little enough to hold."""

_made: dict[str, list[Step]] = {}


class Step:
    """Base of everything that goes into `Dataset.map` or `Dataset.filter`.

    Subclasses are ``@dataclass(frozen=True, slots=True)``, declare ``algorithm: int = field(default=1, init=False)``,
    and implement `compute` and `produces`. Their ``__post_init__`` ends with ``Step.__post_init__(self)``.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        # The card must say how a column came to be; the host keeps no such record. What was made here is looked up by
        # the column it fills, and what the card claims is checked by scoring rows again before it is published.
        for column in self.produces():
            made = _made.setdefault(column, [])
            if self not in made:
                made.append(self)

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Rows in, new columns out: same number, same order. `rank` is what `with_rank=True` passes."""
        view = Batch(batch)
        return view.emit(self.compute(view, rank))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """The new columns, each with `batch.n` values along its first dimension."""
        raise NotImplementedError

    def produces(self) -> tuple[str, ...]:
        """Names of the columns this step adds."""
        raise NotImplementedError

    def needs(self) -> tuple[str, ...]:
        """Names of the columns that another step must have filled: the vectors of `layer`, where there is one."""
        layer = getattr(self, "layer", None)
        return () if layer is None else (embedding_column(layer),)

    def record(self) -> dict[str, Any]:
        """Class name and every field, as plain JSON values: what the card states and a re-run needs."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"step": type(self).__name__} | {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def steps_made(column: str) -> list[Step]:
    """The distinct steps constructed in this process that fill `column`.

    Raises:
        MissingError: none was.
    """
    if column not in _made:
        raise MissingError(
            f"nothing in this process says how column {column!r} was made",
            fix="construct the step that fills it before publishing, or pass steps=[...]",
        )
    return list(_made[column])
