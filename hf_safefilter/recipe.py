"""Recipe: everything that a run depends on, in one strict YAML file.

An unknown key is refused, and the most similar key is suggested. `Recipe.schema_json()` returns the JSON schema. A card
holds the recipe of the run that it describes, and `Recipe.from_card` reads it back.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hf_safefilter.columns import score_column, shift_column
from hf_safefilter.data.strict_yaml import front_matter, load_yaml
from hf_safefilter.decide.actions import Action
from hf_safefilter.decide.threshold_options import checked_way
from hf_safefilter.errors import MissingError, OptionError, SafefilterError
from hf_safefilter.locate.search_prompts import ASKED, KINDS
from hf_safefilter.model.reading_options import ReadingOptions, described, option_names
from hf_safefilter.model.source import JOINED
from hf_safefilter.storage.paths import is_file, is_folder, is_there, shortened

EXAMPLE = (Path(__file__).parent / "cards" / "recipe.yaml").read_text(encoding="utf-8")
"""A recipe to begin with."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Like the constructor, but raises `OptionError` with readable sentences."""
        try:
            return cls(**values)
        except ValidationError as error:
            for item in error.errors():
                if isinstance(raised := item.get("ctx", {}).get("error"), OptionError):
                    raise raised from error
            raise OptionError("these options are not valid", found="; ".join(_sentences(error))) from error


class DataChoice(_Part):
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


class ReferenceChoice(_Part):
    """The rows to compare with: a reference index, or unsafe and safe rows to build one from."""

    path: str | None = None
    """"starter" for the small sets that ship with this package, or the folder or Hub id of an index."""
    trait: Literal["harm", "sycophancy", "made_up_facts"] = "harm"
    """Which of the starter sets: what its unsafe side shows; those other than harm are for the method shift."""
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


class MethodChoice(_Part):
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


class LocateChoice(_Part):
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


OF_THE_REST = ("decisions", "name_reviewers", "add_refusals", "refusals", "refusals_license")
"""Options of a selection that have nothing to do with its threshold."""


class SelectionRule(_Part):
    """How the threshold is found, in exactly one way."""

    by: str | None = None
    """Name of the score to decide by; if left out, the only one; of several that look for one danger, rank_average;
    of several that look for unlike dangers, largest_rank. For pair_shift, and for action: mask, the first one."""
    on: Literal["score", "pair_shift"] = "score"
    """What of it decides: score, or, for preference pairs, pair_shift: the chosen answer's minus the rejected one's."""
    action: Action = "drop"
    """What becomes of dangerous rows: drop; switch (exchange chosen and rejected); mask (answers get weight 0)."""
    drop_fraction: float | None = None
    """Drop this share of the scored rows."""
    drop_count: int | None = None
    """Drop this number of rows."""
    threshold: float | None = None
    """Drop rows that score this or more."""
    label: str | None = None
    """Column of labels for a labelled rule."""
    unsafe: str | int | bool = "unsafe"
    """Value in the column of labels that means unsafe."""
    rule: Literal["best_f1", "tpr_at_fpr"] | None = None
    """The labelled rule."""
    max_fpr: float | None = None
    """Largest false-positive rate for tpr_at_fpr."""
    known_good: str | None = None
    """File or Hub id of rows known to be good, for a threshold with a guarantee."""
    max_loss: float | None = None
    """Largest share of such rows that may be lost."""
    confidence: float | None = None
    """Confidence that this share is not exceeded."""
    decisions: str | None = None
    """File of what people decided on single rows, which goes before the score; see hf-safefilter review."""
    name_reviewers: bool = False
    """Whether the card names these people, and not their number alone."""
    add_refusals: int | None = Field(default=None, ge=1)
    """Add this many refusals of what was dropped to the kept rows, marked by the column added."""
    refusals: str | None = None
    """File or Hub id of rows to choose them from; if left out, those of the starter set."""
    refusals_license: str | None = None
    """Licence of these rows."""

    @model_validator(mode="after")
    def _one_rule(self) -> SelectionRule:
        options = self.model_dump(exclude={"by", "on", "action", "unsafe", *OF_THE_REST})
        checked_way(**options)
        if self.add_refusals is None and (self.refusals is not None or self.refusals_license is not None):
            raise ValueError("refusals belongs to add_refusals: the number of refusals to add")
        if (self.action == "switch") > (self.on == "pair_shift"):
            raise ValueError("`action=switch` exchanges the sides of preference pairs, and goes by a pair shift")
        if self.action == "mask" and self.on != "score":
            raise ValueError("action: mask goes by the scores of answers; leave on: pair_shift out")
        return self


class LabelChoice(_Part):
    """Labels to measure the scores with; they are not used to choose anything."""

    label: str
    """Column of labels."""
    unsafe: str | int | bool = "unsafe"
    """Value that means unsafe."""


class Recipe(_Part):
    """One run: rows in, and the rows that are not dangerous out."""

    data: DataChoice
    model: ReadingOptions
    """The model that is to be tuned, and how it is read; ``model: toy`` is short for ``model: {name: toy}``."""
    references: ReferenceChoice = ReferenceChoice(path="starter")
    layer: Annotated[int, Field(ge=0)] | Literal["auto", "norm"] = "auto"
    """The layer to read: hidden_states[k]; auto: found as `locate` states."""
    locate: LocateChoice = LocateChoice()
    """How the layer is found if it is auto."""
    methods: tuple[MethodChoice, ...] = (MethodChoice(name="probe"), MethodChoice(name="shift"))
    """Scores to compute: probe finds rows that contain harm, shift rows that wear refusals away."""
    select: SelectionRule
    evaluate: LabelChoice | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, body: Any) -> Any:
        """Accept `methods: larf`, `methods: [larf, {name: nearest, options: {k: 5}}]` and `model: toy`."""
        if isinstance(body, Mapping) and "methods" in body:
            methods = body["methods"]
            listed = [methods] if isinstance(methods, (str, Mapping)) else methods
            if isinstance(listed, (list, tuple)):
                listed = tuple({"name": method} if isinstance(method, str) else method for method in listed)
            body = {**body, "methods": listed}
        if isinstance(body, Mapping) and isinstance(body.get("model"), str):
            body = {**body, "model": {"name": body["model"]}}
        return body

    @model_validator(mode="after")
    def _methods_fit(self) -> Recipe:
        from hf_safefilter.scores import COMBINED

        names = [method.name for method in self.methods]
        if not names:
            raise ValueError("methods is empty; name at least one")
        if len(set(names)) < len(names):
            raise ValueError("a method is named twice")
        if self.select.on == "pair_shift" and self.decided_by in COMBINED:
            raise ValueError("select.on is pair_shift, which ranks do not have; name one method in by")
        if self.select.action == "mask" and self.data.streaming:
            raise ValueError("action: mask needs rows that are stored; leave data.streaming out")
        if self.select.by not in (None, *COMBINED, *names):
            raise ValueError(f"select.by is {self.select.by!r}, which is not among the methods {', '.join(names)}")
        return self

    @property
    def decided_by(self) -> str:
        """Name of the method that the threshold applies to."""
        if self.select.by is not None:
            return self.select.by
        if len(self.methods) == 1 or self.select.on == "pair_shift" or self.select.action == "mask":
            return self.methods[0].name
        from hf_safefilter.scores import method

        dangers = {method(choice.name).DANGER for choice in self.methods}
        return "rank_average" if len(dangers) == 1 else "largest_rank"

    @property
    def decided_column(self) -> str:
        """Name of the column that the threshold applies to."""
        return (shift_column if self.select.on == "pair_shift" else score_column)(self.decided_by)

    @classmethod
    def read(cls, source: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
        """A recipe from a YAML file, a mapping or a recipe.

        Raises:
            MissingError: The file does not exist.
            OptionError: It is not YAML, or has an unknown key (the most similar is suggested) or a wrong value.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls._checked(source, "the recipe")
        if not is_file(source):
            raise MissingError(
                f"there is no recipe {shortened(str(source))}", fix="print an example: hf-safefilter run --example"
            )
        path = Path(source).expanduser()
        try:
            return cls.parse(path.read_text(encoding="utf-8"), path.name)
        except UnicodeDecodeError as error:
            raise OptionError(f"{path.name} is not UTF-8 text", fix="save it as UTF-8") from error

    @classmethod
    def parse(cls, text: str, name: str = "the recipe") -> Recipe:
        """A recipe from YAML text; raises as `read` does."""
        body = load_yaml(text, name)
        if not isinstance(body, Mapping):
            raise OptionError(f"{name} is not a mapping", fix="start it with the keys data, model and select")
        return cls._checked(body, name)

    @classmethod
    def _checked(cls, body: Mapping[str, Any], name: str) -> Recipe:
        try:
            recipe = cls.model_validate(body)
            recipe.to_dict()  # what the card will hold: options that hold themselves, say, end here
        except ValidationError as error:
            raise OptionError(f"{name} is not valid", found="\n       ".join(_sentences(error))) from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"{name} holds a value that cannot be written down", found=reason) from error
        return recipe

    @classmethod
    def from_card(cls, repo: str, *, revision: str | None = None, token: str | None = None) -> Recipe:
        """The recipe in the card of a published data set, or of a local output folder.

        Raises:
            MissingError: There is no card, or it holds no recipe.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        folder = Path(repo)
        try:
            if is_folder(folder):
                card = folder / "README.md"
            else:
                card = Path(hf_hub_download(repo, "README.md", repo_type="dataset", revision=revision, token=token))
            ours = front_matter(card).get("safefilter")
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise MissingError(
                f"{repo} has no readable card", found=type(error).__name__, fix="check the name"
            ) from error
        body = ours.get("recipe") if isinstance(ours, dict) else None
        if not body:
            raise MissingError(f"the card of {repo} holds no recipe", fix="ask its author for the recipe")
        if not isinstance(body, dict):
            raise OptionError(f"the recipe in the card of {repo} is not a mapping", fix="ask its author for the recipe")
        return cls._checked(body, f"the recipe in the card of {repo}")

    def to_yaml(self) -> str:
        """The recipe as YAML, without values that are defaults."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, without values that are defaults."""
        return json.loads(self.model_dump_json(exclude_defaults=True, by_alias=True))

    def portable(self) -> dict[str, Any]:
        """`to_dict` with local paths cut to their last part, for a card that is published."""
        body = self.to_dict()
        for part, key in (("data", "path"), ("model", "name"), ("references", "path"), ("references", "unsafe"),
                          ("references", "safe"), ("references", "benign"), ("select", "known_good"),
                          ("locate", "normal"), ("locate", "malicious"), ("locate", "over_refusal")):  # fmt: skip
            value = body.get(part, {}).get(key)
            if value is not None:
                body[part][key] = JOINED.join(_last_part(name) for name in value.split(JOINED))
        return body

    @classmethod
    def schema_json(cls) -> str:  # type: ignore[override]  # pydantic's own is deprecated
        """The JSON schema of a recipe."""
        return json.dumps(cls.model_json_schema(), indent=2)


def _last_part(name: str) -> str:
    """A local path cut to its last part; any other name as it is."""
    return Path(name).resolve().name if is_there(name) or Path(name).is_absolute() else name


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        raised = item.get("ctx", {}).get("error")
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _keys_at(item["loc"][:-1])
            similar = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known here: {', '.join(known)}"
            sentences.append(f"{key}: there is no such key; {hint}")
        elif item["type"] == "string_pattern_mismatch":
            meaning = described(ReadingOptions)[str(item["loc"][-1])]
            sentences.append(f"{key}: {item['input']!r} is not known; {meaning}")
        else:
            said = item["msg"].removeprefix("Value error, ")
            if isinstance(raised, SafefilterError):
                said = "; ".join(part for part in (raised.fact, raised.found, raised.fix) if part)
            sentences.append(f"{key}: {said}" if key else said)
    return sentences


def _keys_at(loc: tuple[str | int, ...]) -> list[str]:
    """The keys that the part of a recipe at `loc` may have."""
    if loc and loc[0] == "model":
        return ["name" if name == "model" else name for name in option_names(ReadingOptions)]
    parts: dict[str, type[_Part]] = {
        "data": DataChoice,
        "references": ReferenceChoice,
        "methods": MethodChoice,
        "select": SelectionRule,
        "evaluate": LabelChoice,
        "locate": LocateChoice,
    }
    return list((parts[str(loc[0])] if loc else Recipe).model_fields)
