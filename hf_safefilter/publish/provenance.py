"""Provenance: everything that a card states, as one object of plain values; nothing in it is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hf_safefilter.decide.verdict import Verdict
from hf_safefilter.errors import IntegrityError, PublishError
from hf_safefilter.errors.redaction import everywhere, shown
from hf_safefilter.model.source import JOINED
from hf_safefilter.storage.paths import is_there

SCHEMA = 1


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _fit_to_be_seen(cls, body: Any) -> Any:
        """No password, token or control character gets into a record, and so none into a card."""
        return everywhere(body, shown)


class SourceSplit(_Facts):
    """A split of the source."""

    rows: int
    row_ids: str
    """``sha256:`` over the row ids in order, a newline after each."""


class Source(_Facts):
    """The origin of the rows."""

    name: str
    revision: str | None
    """Commit of the Hub, or digest of the files; None for rows that were in memory."""
    license: str
    generator_model: str | None = None
    """The model that wrote the responses, or "people"; None: not stated."""
    splits: dict[str, SourceSplit]


class Decision(_Facts):
    """The rule by which rows were kept."""

    column: str
    threshold: float
    threshold_hex: str
    """The same number to the last bit."""
    rule: str
    action: str = "drop"
    """What became of the rows above the threshold: drop, switch or mask."""


class Share(_Facts):
    """Number of rows of a split, source or category, and of dropped rows among them."""

    rows: int
    dropped: int


class Counts(_Facts):
    """Number of rows, and of kept and dropped rows."""

    rows: int
    kept: int
    dropped: int
    changed: int = 0
    """Kept rows that were switched or masked."""
    by_reason: dict[str, int]
    by_split: dict[str, Share]
    by_source: dict[str, Share] = Field(default_factory=dict)
    by_category: dict[str, Share] = Field(default_factory=dict)


class Review(_Facts):
    """What people decided on single rows, against the score or with it."""

    sha256: str
    """Digest of what was decided on which row."""
    decided: int
    """Number of rows on which somebody has decided."""
    kept: int
    """Rows that were kept although their score reaches the threshold, or they could not be scored."""
    unscored: int
    """Of these, rows that could not be scored."""
    dropped: int
    """Rows that were dropped although their score is below the threshold."""
    masked: int
    """Rows of which some turns are not to be trained on."""
    reviewers: int
    names: list[str]
    """Names of the people, if they are to be published."""
    rows: int
    """Number of rows on which several people have decided."""
    agreed: int
    """Of these, on how many they decided alike."""
    alpha: float | None
    """Krippendorff's alpha of these; None where it is not defined."""


class Added(_Facts):
    """Rows that were added to the kept ones; a column of theirs says what as."""

    rows: int
    split: str
    """The split that they follow."""
    source: str
    license: str
    by_category: dict[str, int]
    row_ids: str
    """``sha256:`` over their row ids in order, a newline after each."""


class Check(_Facts):
    """The check that the stated steps are those that ran: some rows were read and scored again from their text."""

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
    """`EmbedLayers.describe()`; None if no score reads a model."""
    layer_choice: dict[str, Any] | None = None
    references: list[dict[str, Any]]
    """`ReferenceIndex.summary()` of each set of references."""
    overlap: int
    """Number of rows that are also among the references."""
    steps: list[dict[str, Any]]
    """`Step.record()` of each step, in the order they ran."""
    selection: Decision
    counts: Counts
    added: Added | None = None
    """Rows that were added, such as refusals; they are not among the counts."""
    review: Review | None = None
    """None if nobody has decided on single rows."""
    verdict: dict[str, Any] | None = None
    """`Verdict.to_json()`: what is known of the deciding score."""
    anyway: bool = False
    """Whether this is published in spite of a bad verdict."""
    trusted_vectors: bool = False
    """Whether vectors, scores or this folder itself came from elsewhere, and were believed because the user said so."""
    quantiles: dict[str, float]
    controls: dict[str, float | None]
    """Spearman correlation of the deciding score with each control."""
    check: Check
    evaluation: dict[str, Any] | None = None
    effect: dict[str, Any] | None = None
    """`EffectReport.for_card()`: how the filter changed a model that was tuned on these rows."""
    environment: dict[str, str]
    recipe: dict[str, Any] | None = None
    columns_added: list[str]
    """Columns that this run has added; they are not published."""

    @property
    def added_to(self) -> str | None:
        """The split that rows were added to."""
        return None if self.added is None else self.added.split

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The content of ``provenance.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "provenance.json") -> Provenance:
        """The record that `to_json` has written.

        Raises:
            IntegrityError: The text is something else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            raise IntegrityError(
                f"{name} is not a provenance record", found=problems, fix="write the folder again"
            ) from error

    def require_trusted(self) -> None:
        """Raise if something speaks against the deciding score and nobody has insisted on publishing.

        Raises:
            PublishError: The verdict is bad.
            IntegrityError: The verdict is damaged.
        """
        verdict = self.judged()
        if verdict is not None and verdict.bad and not self.anyway:
            raise PublishError(
                f"the verdict on {self.selection.column} is bad, so the rows that it keeps should not be published",
                found=verdict.sentence,
                fix="compare other methods, layers and references: hf-safefilter compare --help; or publish them in "
                "spite of the verdict, which the card then states: `anyway=True`",
            )

    def written_by_its_own_model(self) -> bool:
        """Whether the model that wrote the responses is, by its name, the one that was read, which is to be tuned.

        A model takes over traits of another of the same base from rows in which no text shows them. Source: Cloud et
        al., Subliminal Learning (arXiv 2507.14805).
        """
        if self.source.generator_model is None or self.model is None:
            return False
        base = str(self.model["model"]).partition(JOINED)[0]
        last = {name.rstrip("/").rpartition("/")[2].casefold() for name in (self.source.generator_model, base)}
        return len(last) == 1

    def judged(self) -> Verdict | None:
        """The verdict on the deciding score; None in records of versions that gave none.

        Raises:
            IntegrityError: It is damaged.
        """
        return None if self.verdict is None else Verdict.from_json(self.verdict)

    def insisted(self) -> Provenance:
        """This record, of a user who publishes in spite of a bad verdict; no other verdict needs insisting."""
        verdict = self.judged()
        return self.model_copy(update={"anyway": verdict is not None and verdict.bad})

    def checked(self) -> Provenance:
        """This record, if it may be published.

        Raises:
            PublishError: The licence or the source is missing.
        """
        for name, value in (("licence", self.source.license), ("source", self.source.name)):
            if not value.strip():
                raise PublishError(f"the {name} is missing", fix='pass `license="cc-by-4.0"` and `source="..."`')
        return self


def portable(value: Any) -> Any:
    """`value` with local paths cut to their last part, so that it can be published."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if isinstance(value, str) and JOINED in value and not is_there(value):  # a model and its adapter
        return JOINED.join(portable(part) for part in value.split(JOINED))
    if isinstance(value, str) and len(value) < 1024 and "\n" not in value:
        path = Path(value).expanduser()
        if path.is_absolute() or (len(path.parts) > 1 and path.exists()):
            return path.name
    return value
