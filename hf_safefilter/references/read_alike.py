"""Whether the vectors of a batch were read as the references were, which each row says of itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hf_safefilter.columns import READ_AS
from hf_safefilter.data.batch import Batch
from hf_safefilter.errors import DataError, MissingError, SafefilterError
from hf_safefilter.model.reading_digest import DECIDES, reading_digest
from hf_safefilter.step import Step, steps_made


def require_read_alike(batch: Batch, references: Mapping[str, Any], column: str) -> None:
    """Raise unless the rows of a batch were read as references were; rows that do not say how are taken as they are.

    Args:
        batch: The rows, with the column `read_as` if `EmbedLayers` has read them.
        references: How the references were read, as `ReferenceIndex.embed` has it.
        column: The column of vectors that are compared.

    Raises:
        DataError: A row was read at another position, by another model, with another template, ...
    """
    if READ_AS not in batch.names:
        return
    others = set(batch.cells(READ_AS)) - {reading_digest(references), None}
    if others:
        raise DataError(
            "these rows were read in another way than the references, so their vectors cannot be compared",
            found=_difference(others, references, column),
            fix="embed the rows as the references were read, or build references as the rows were read: "
            "hf-safefilter reference build --help",
        )


def _difference(digests: Collection[str], references: Mapping[str, Any], column: str) -> str:
    """What differs, if a step of this process has read rows so."""
    made = (_described(step) for step in _steps(column))
    rows = next((facts for facts in made if facts is not None and reading_digest(facts) in digests), None)
    if rows is None:
        return f"references read by {references.get('model')}, at {references.get('position')}"
    unlike = [name for name in ("model", *DECIDES) if references.get(name) != rows[name]]
    return "; ".join(
        f"{name} {references.get(name)!r} for the references, {rows[name]!r} for the rows" for name in unlike
    )


def _steps(column: str) -> list[Step]:
    try:
        return steps_made(column)
    except MissingError:
        return []


def _described(step: Step) -> dict[str, Any] | None:
    """How a step reads; None if it does not, or if its model is no longer there."""
    describe = getattr(step, "describe", None)
    try:
        return None if describe is None else describe()
    except (SafefilterError, OSError):
        return None
