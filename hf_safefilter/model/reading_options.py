"""How a model is loaded and read, as typed fields: written once, for steps, recipes, the pipeline and the command line.

A field's `description` is its help on the command line and in the recipe's JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Position = Literal["last", "last_content", "mean_response", "last_prompt"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]

POSITIONS: tuple[str, ...] = get_args(Position)
"""What stands for a row: the last token of the rendering (often an end token), the last token of the response, the
mean over the response, or the last token of the prompt (with the header after which the model would answer)."""

ATTENTIONS: tuple[str, ...] = get_args(Attention)

_PYDANTIC: dict[str, Any] = {"extra": "forbid", "strict": False}


def _described(text: str, **more: Any) -> dict[str, Any]:
    return {"description": text, **more}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _PYDANTIC

    model: str = field(
        metadata=_described("Hub id, local folder, or 'toy' for the model that ships with this package.", alias="name")
    )
    _: KW_ONLY
    revision: str | None = field(default=None, metadata=_described("Hub branch, tag or commit of the model."))
    dtype: Dtype = field(
        default="auto",
        metadata=_described("auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16 or float16."),
    )
    device: str | None = field(default=None, metadata=_described("cuda, cuda:1, mps or cpu; picked if left out."))
    chat_template: str | None = field(
        default=None, metadata=_described("Jinja template (or 'plain') for a model without one.")
    )

    def values(self) -> dict[str, Any]:
        """Name -> value of every option."""
        return {name: getattr(self, name) for name in option_names(type(self))}


@dataclass(frozen=True, slots=True)
class ReadingOptions(ModelOptions):
    """Which model, and how rows are read by it."""

    _: KW_ONLY
    position: Position = field(
        default="last",
        metadata=_described("What stands for a row: last, last_content, mean_response or last_prompt."),
    )
    max_length: int | None = field(
        default=None,
        metadata=_described("Longest row in tokens; the middle of longer responses is cut.", ge=2),
    )
    attn: Attention = field(
        default="auto",
        metadata=_described(
            "auto packs rows without padding where the model allows it; else sdpa, eager, flash_attention_2, "
            "flash_attention_3 or flex_attention, rows padded."
        ),
    )


def option_names(kind: type[ModelOptions]) -> list[str]:
    """Names of the options of `ModelOptions`, `ReadingOptions`, or of the latter in a subclass with more fields."""
    known = {option.name for option in fields(ReadingOptions)}
    return [option.name for option in fields(kind) if option.name in known]


def described(kind: type[ModelOptions]) -> Mapping[str, str]:
    """Option -> what it means."""
    return {option.name: option.metadata["description"] for option in fields(kind)}
