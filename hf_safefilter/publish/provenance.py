"""Provenance: everything a card states, as one object of plain values. Nothing in it is guessed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hf_safefilter.errors import IntegrityError, PublishError

SCHEMA = 1
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SourceSplit(_Facts):
    """One split as it came in."""

    rows: int
    row_ids: str
    """``sha256:`` over the row ids in order, a newline after each."""


class Source(_Facts):
    """Where the rows come from."""

    name: str
    revision: str | None
    """Commit of the Hub, or digest of the files; None when only rows in memory were given."""
    license: str
    splits: dict[str, SourceSplit]


class Selection(_Facts):
    """The decision."""

    column: str
    threshold: float
    threshold_hex: str
    """The same number to the last bit."""
    rule: str


class Share(_Facts):
    """Rows of a split, source or category, and how many of them were dropped."""

    rows: int
    dropped: int


class Counts(_Facts):
    """What happened to the rows."""

    rows: int
    kept: int
    dropped: int
    by_reason: dict[str, int]
    by_split: dict[str, Share]
    by_source: dict[str, Share] = Field(default_factory=dict)
    by_category: dict[str, Share] = Field(default_factory=dict)


class Check(_Facts):
    """Rows that were read and scored again from their text, to see that the steps stated are the ones that ran."""

    rows: int
    largest_difference: float
    tolerance: float


class Provenance(_Facts):
    """The record of one run."""

    schema_version: int = SCHEMA
    tool: str
    created: str
    """Date, UTC."""
    source: Source
    model: dict[str, Any] | None
    """`EmbedLayers.describe()`; None where no score reads a model."""
    layer_choice: dict[str, Any] | None = None
    references: list[dict[str, Any]]
    """`ReferenceIndex.summary()` of each set used."""
    overlap: int
    """Rows that stand among the references too."""
    steps: list[dict[str, Any]]
    """`Step.record()` of each step, in the order they ran."""
    selection: Selection
    counts: Counts
    quantiles: dict[str, float]
    controls: dict[str, float | None]
    """Spearman correlation of the deciding score with each control."""
    check: Check
    evaluation: dict[str, Any] | None = None
    effect: dict[str, Any] | None = None
    """`EffectReport.for_card()`: what the filter did to a model that was tuned on these rows."""
    environment: dict[str, str]
    recipe: dict[str, Any] | None = None
    columns_added: list[str]
    """Columns of this run; they are left out of what is published."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """What stands in ``provenance.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "provenance.json") -> Provenance:
        """The object that `to_json` wrote.

        Raises:
            IntegrityError: anything else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            raise IntegrityError(
                f"{name} is not a provenance record", found=found, fix="write the folder again"
            ) from error

    def checked(self) -> Provenance:
        """Itself, if it may be published.

        Raises:
            PublishError: no licence, no source, or a string that looks like a token.
        """
        for name, value in (("licence", self.source.license), ("source", self.source.name)):
            if not value.strip():
                raise PublishError(f"a missing {name} is an error", fix="say it: license='cc-by-4.0', source='...'")
        if _TOKEN.search(self.to_json()):
            raise PublishError(
                "something that looks like a Hub token stands in the record, which would be published",
                fix="look in the names, options and recipe of this run",
            )
        return self


def portable(value: Any) -> Any:
    """`value` with local paths cut to their last part: what may be shown to a stranger."""
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(one) for one in value]
    if isinstance(value, str) and len(value) < 1024 and "\n" not in value:
        path = Path(value).expanduser()
        if path.is_absolute() or (len(path.parts) > 1 and path.exists()):
            return path.name
    return value
