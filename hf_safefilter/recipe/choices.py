"""The rows, references, methods, layer search and labels that a recipe names."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hf_safefilter.locate.search_prompts import ASKED, KINDS
from hf_safefilter.recipe.strict_part import Part


class DataChoice(Part):
    """The rows to purify."""

    path: str | None = None
    """Hub id, file or folder; may be left out if rows are passed to `purify`."""
    config: str | None = None
    """Configuration of a Hub data set."""
    split: str | None = None
    """Use only this split."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    streaming: bool = False
    """Read rows as they are needed, for data sets that are too large for the disk cache."""
    columns: dict[str, str] | None = None
    """Columns of prompt and response, if their names are not known ones, e.g. {prompt: q, response: a}."""
    license: str = Field(min_length=1)
    """Licence of the rows, as the Hub names it, e.g. cc-by-4.0."""
    source: str = Field(min_length=1)
    """Where the rows come from: a Hub id, a URL or a sentence."""
    generator_model: str | None = None
    """Hub id of the model that wrote the responses, or "people": rows of a model can carry its traits unseen."""


class ReferenceChoice(Part):
    """The rows to compare with: a reference index, or unsafe and safe rows to build one from."""

    path: str | None = None
    """"starter" for the small sets that ship with this package, or the folder or Hub id of an index."""
    trait: Literal["harm", "sycophancy", "made_up_facts", "obedience"] = "harm"
    """Which of the starter sets: what its unsafe side shows; those other than harm are for shift, or nearest."""
    revision: str | None = None
    """Hub revision of the index."""
    unsafe: str | None = None
    """File or Hub id of harmful requests with answers."""
    safe: str | None = None
    """File or Hub id of the same requests with refusals."""
    benign: str | None = "starter"
    """File or Hub id of ordinary rows for the safe side, "starter" for those that ship with this package, null for
    none: without them, what only sounds unlike a refusal is taken for harm."""
    license: str | None = None
    """Licence of the rows of `unsafe`, `safe` and `benign`."""
    source: str | None = None
    """Where those rows come from."""

    @model_validator(mode="after")
    def _index_or_rows(self) -> ReferenceChoice:
        rows = (self.unsafe, self.safe, self.license, self.source)
        if (self.path is None) == (rows == (None,) * 4):
            raise ValueError("give either path, or unsafe, safe, license and source")
        if self.trait != "harm" and self.path != "starter":
            raise ValueError("trait chooses among the sets of path: starter")
        if self.path is None and None in rows:
            raise ValueError("unsafe, safe, license and source go together")
        return self


class MethodChoice(Part):
    """A score to compute."""

    name: str
    """Name of the method, as in the registry of scores."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the method, as its class documents them, e.g. {k: 5}."""

    @field_validator("name")
    @classmethod
    def _registered(cls, name: str) -> str:
        from hf_safefilter.scores import COMBINED, METHODS

        known = [method for method in METHODS if method not in COMBINED]  # `select.by` names these
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known here: {', '.join(known)}"
            raise ValueError(f"there is no method {name!r}; {hint}")
        return name


class LocateChoice(Part):
    """How ``layer: auto`` finds the layer."""

    method: Literal["auto", "references", "gap", "scaling", "bounds"] = "auto"
    """references: cross-validation on the references; gap, scaling, bounds: a search for safety layers; auto:
    references if a method compares with them, else scaling if generation is affordable, else gap."""
    normal: str | None = None
    """File or Hub id of everyday prompts, for gap and bounds; those of the starter set if left out."""
    malicious: str | None = None
    """File or Hub id of harmful requests, for gap and bounds."""
    over_refusal: str | None = None
    """File or Hub id of prompts that only sound harmful, for scaling and bounds."""
    refusals: Literal["broad", "larf", "qi2023", "safety_layers"] | None = None
    """How refusals are recognised; as the method does it if left out."""

    @model_validator(mode="after")
    def _prompts_are_used(self) -> LocateChoice:
        used = KINDS if self.method == "auto" else ASKED.get(self.method, ())
        for kind in KINDS:
            if getattr(self, kind) is not None and kind not in used:
                raise ValueError(f"the method {self.method} uses no {kind} prompts")
        return self


class LabelChoice(Part):
    """Labels to measure the scores with; they are not used to choose anything."""

    label: str
    """Column of labels."""
    unsafe: str | int | bool = "unsafe"
    """Value that means unsafe."""
