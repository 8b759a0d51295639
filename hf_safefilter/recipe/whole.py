"""The recipe itself: its parts together, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from hf_safefilter.columns import score_column, shift_column
from hf_safefilter.data.strict_yaml import front_matter, load_yaml
from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.model.reading_options import ReadingOptions
from hf_safefilter.model.source import JOINED
from hf_safefilter.recipe.choices import DataChoice, LabelChoice, LocateChoice, MethodChoice, ReferenceChoice
from hf_safefilter.recipe.selection import SelectionRule
from hf_safefilter.recipe.strict_part import Part, sentences
from hf_safefilter.storage.paths import is_file, is_folder, is_there, shortened

EXAMPLE = (Path(__file__).parents[1] / "cards" / "recipe.yaml").read_text(encoding="utf-8")
"""A recipe to begin with."""


class Recipe(Part):
    """One run: rows in, and the rows that are not dangerous out."""

    data: DataChoice
    model: ReadingOptions
    """The model that is to be tuned, and how it is read; ``model: toy`` is short for ``model: {name: toy}``."""
    references: ReferenceChoice = ReferenceChoice(path="starter")
    layer: Annotated[int, Field(ge=0)] | Literal["auto", "norm"] = "auto"
    """The layer to read: hidden_states[k]; auto: found as `locate` states."""
    locate: LocateChoice = LocateChoice()
    """How the layer is found if it is auto."""
    methods: tuple[MethodChoice, ...] = (MethodChoice(name="ensemble"), MethodChoice(name="shift"))
    """Scores to compute: ensemble finds rows that contain harm, shift rows that wear refusals away."""
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
        return "rank_average" if len(dangers) == 1 else "largest_deviation"

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
            raise OptionError(f"{name} is not valid", found="\n       ".join(sentences(error, cls))) from error
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
        """`to_dict` for a card that is published: with local paths cut to their last part, and with the methods and the
        one that decides, whose defaults are others in other versions."""
        body = self.to_dict()
        body.setdefault("methods", [{"name": method.name} for method in self.methods])
        body["select"].setdefault("by", self.decided_by)
        for part, key in (("data", "path"), ("model", "name"), ("references", "path"), ("references", "unsafe"),
                          ("references", "safe"), ("references", "benign"), ("select", "known_good"),
                          ("select", "decisions"), ("select", "refusals"),
                          ("locate", "normal"), ("locate", "malicious"), ("locate", "over_refusal")):  # fmt: skip
            value = body.get(part, {}).get(key)
            if value is not None:
                body[part][key] = JOINED.join(_last_part(name) for name in value.split(JOINED))
        for method in body.get("methods", ()):
            options = method.get("options", {})
            options |= {key: _last_part(value) for key, value in options.items() if isinstance(value, str)}
        return body

    @classmethod
    def schema_json(cls) -> str:  # type: ignore[override]  # pydantic's own is deprecated
        """The JSON schema of a recipe."""
        return json.dumps(cls.model_json_schema(), indent=2)


def _last_part(name: str) -> str:
    """A local path cut to its last part; any other name as it is."""
    return Path(name).resolve().name if is_there(name) or Path(name).is_absolute() else name
