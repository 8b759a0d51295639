"""What every part of a recipe is: strict, frozen, and with mistakes said in sentences."""

from __future__ import annotations

import difflib
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from hf_safefilter.errors import OptionError, SafefilterError
from hf_safefilter.model.reading_options import ReadingOptions, described, option_names


class Part(BaseModel):
    """A part of a recipe: an unknown key is refused, and the most similar one is suggested."""

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
            raise OptionError("these options are not valid", found="; ".join(sentences(error, cls))) from error


def sentences(error: ValidationError, of: type[Part]) -> list[str]:
    """What is wrong with the values of a part, one sentence a mistake."""
    said_of = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        raised = item.get("ctx", {}).get("error")
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _keys_at(of, item["loc"][:-1])
            similar = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known here: {', '.join(known)}"
            said_of.append(f"{key}: there is no such key; {hint}")
        elif item["type"] == "string_pattern_mismatch":
            meaning = described(ReadingOptions)[str(item["loc"][-1])]
            said_of.append(f"{key}: {item['input']!r} is not known; {meaning}")
        else:
            said = item["msg"].removeprefix("Value error, ")
            if isinstance(raised, SafefilterError):
                said = "; ".join(part for part in (raised.fact, raised.found, raised.fix) if part)
            said_of.append(f"{key}: {said}" if key else said)
    return said_of


def _keys_at(part: type[Part], loc: tuple[str | int, ...]) -> list[str]:
    """The keys that stand at `loc` below a part."""
    for name in loc:
        if isinstance(name, int):
            continue
        annotation = part.model_fields[name].annotation
        if annotation is ReadingOptions:
            return ["name" if name == "model" else name for name in option_names(ReadingOptions)]
        part = next(kind for kind in (annotation, *get_args(annotation)) if _is_part(kind))
    return list(part.model_fields)


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Part)
