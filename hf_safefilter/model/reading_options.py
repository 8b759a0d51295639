"""How a model is loaded and read, as typed fields: written once, for steps, recipes, the pipeline and the command line.

A field's `description` is its help on the command line and in the recipe's JSON schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

from hf_safefilter.checks import require_choice, require_whole
from hf_safefilter.data.shapes import TRAILING
from hf_safefilter.errors import OptionError
from hf_safefilter.model.source import with_adapter

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Spans = Literal["trained", "all"]
TooLong = Literal["windows", "drop", "cut"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
StreamBlocks = Literal["auto", "always", "never"]
Backend = Literal["transformers", "vllm"]

MEAN = "mean"
"""The position that is no single token: the mean over all tokens of a span, or of a window of it."""

POSITIONS = (MEAN, "last", "last_content", "last_prompt")
"""Where a span is read: the mean over its tokens; the last token of its turn (often an end
token or a newline); the last token of its content; the token before it (the end of the header after which the model
answers). ``first_<n>`` is the mean over its first n tokens."""

WINDOW = 18
"""Tokens that one mean is taken over at most. Harm in a few words among many harmless ones is lost in a longer mean."""

ATTENTIONS: tuple[str, ...] = get_args(Attention)

HOW = frozenset({"device", "attn", "stream_blocks", "backend"})
"""Options that say where and how rows are read, not what is read of them: records may differ in them, or lack them."""

_FIRST = re.compile(r"first_([1-9]\d{0,5})")
_LISTED = r"^\s*({0})\s*(,\s*({0})\s*)*$".format("|".join([*POSITIONS, _FIRST.pattern]))  # for recipes and their schema
_PYDANTIC: dict[str, Any] = {"extra": "forbid", "strict": False}


def _described(text: str, **more: Any) -> dict[str, Any]:
    return {"description": text, **more}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _PYDANTIC

    model: str = field(
        metadata=_described(
            "Hub id, local folder, GGUF file, or 'toy' for the model that ships with this package.", alias="name"
        )
    )
    _: KW_ONLY
    adapter: str | None = field(
        default=None,
        metadata=_described("Folder or Hub id of a PEFT adapter that is merged into the model in memory."),
    )
    revision: str | None = field(default=None, metadata=_described("Hub branch, tag or commit of the model."))
    dtype: Dtype = field(
        default="auto",
        metadata=_described("auto (float32 on a CPU, the checkpoint's own on a GPU), float32, bfloat16 or float16."),
    )
    device: str | None = field(default=None, metadata=_described("cuda, cuda:1, mps or cpu; picked if left out."))
    chat_template: str | None = field(
        default=None,
        metadata=_described("Jinja template, name of one of the model's, 'plain' or 'raw', for a model without one."),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", with_adapter(str(self.model), self.adapter))
        object.__setattr__(self, "adapter", None)  # it is part of the model's name from now on

    def values(self) -> dict[str, Any]:
        """Name -> value of every option."""
        return {name: getattr(self, name) for name in option_names(type(self))}


@dataclass(frozen=True, slots=True)
class ReadingOptions(ModelOptions):
    """Which model, and how rows are read by it."""

    _: KW_ONLY
    position: str = field(
        default=MEAN,
        metadata=_described(
            "Where a span is read: mean, last, last_content, last_prompt or first_<n>; several are comma separated.",
            pattern=_LISTED,
        ),
    )
    spans: Spans = field(
        default="trained",
        metadata=_described("trained: the answers that a trainer learns; all: system, user and tool turns as well."),
    )
    window: int | None = field(
        default=WINDOW,
        metadata=_described(
            "Tokens that a mean is taken over at most: longer spans are read in windows; 0: whole.", ge=0
        ),
    )
    max_length: int | None = field(
        default=None,
        metadata=_described("Longest row in tokens; the model's own limit if left out.", ge=8),
    )
    too_long: TooLong = field(
        default="windows",
        metadata=_described(
            "Longer rows are read in windows, dropped (drop), or cut off at the end as trainers do (cut)."
        ),
    )
    ignore: tuple[str, ...] = field(
        default=(),
        metadata=_described(
            "What may go unread, comma separated: columns, keys of a message, trailing_turn for turns after the last "
            "answer. Otherwise a row with unread text is unscorable."
        ),
    )
    attn: Attention = field(
        default="auto",
        metadata=_described(
            "auto packs rows without padding where the model allows it; else sdpa, eager, flash_attention_2, "
            "flash_attention_3 or flex_attention, rows padded."
        ),
    )
    stream_blocks: StreamBlocks = field(
        default="auto",
        metadata=_described(
            "auto loads one block of the model at a time, for many rows, where not all fit in memory; always; never."
        ),
    )
    backend: Backend = field(
        default="transformers",
        metadata=_described("transformers, or vllm where it is installed and reads the model alike."),
    )

    @property
    def positions(self) -> tuple[str, ...]:
        """The positions, the main one first."""
        return positions_in(self.position)

    @property
    def ignored(self) -> tuple[str, ...]:
        """What may go unread; where all turns are spans, turns after the last answer are read."""
        return (*self.ignore, TRAILING) if self.spans == "all" else tuple(self.ignore)


def positions_in(position: str) -> tuple[str, ...]:
    """The positions that a comma-separated text names.

    Raises:
        OptionError: There is no such position, or one is named twice.
    """
    names = tuple(name.strip() for name in str(position).split(","))
    for name in names:
        if not _FIRST.fullmatch(name):
            require_choice("position", name, (*POSITIONS, "first_<n>"))
    if len(set(names)) < len(names):
        raise OptionError(f"`position={position}` names a position twice", fix="name each once")
    return names


def tokens_of_first(position: str) -> int | None:
    """n of ``first_<n>``; None for any other position."""
    match = _FIRST.fullmatch(position)
    return int(match[1]) if match else None


def checked_reading(options: ReadingOptions) -> dict[str, Any]:
    """The fields in the form in which they are stored, after all checks that need no model.

    Raises:
        OptionError: A value that makes no sense.
    """
    positions = positions_in(options.position)
    require_choice("dtype", options.dtype, get_args(Dtype))
    require_choice("attn", options.attn, ATTENTIONS)
    require_choice("stream_blocks", options.stream_blocks, get_args(StreamBlocks))
    require_choice("backend", options.backend, get_args(Backend))
    if options.backend == "vllm":
        _require_free_hand(options)
    require_choice("spans", options.spans, get_args(Spans))
    require_choice("too_long", options.too_long, get_args(TooLong))
    if options.max_length is not None:
        require_whole("max_length", options.max_length, least=8)
    if options.window:
        require_whole("window", options.window, least=2)
    ignore: str | Sequence[str] = options.ignore  # as passed
    names = ignore.split(",") if isinstance(ignore, str) else ignore
    return {
        "position": ",".join(positions),
        "window": options.window or None if MEAN in positions else None,  # windows are what a mean is taken over
        "ignore": tuple(sorted({str(name).strip() for name in names} - {""})),
    }


def _require_free_hand(options: ReadingOptions) -> None:
    """Nothing is asked for that only transformers can do."""
    for name, value in (("attn", options.attn), ("stream_blocks", options.stream_blocks)):
        if value != "auto":
            raise OptionError(
                f"`{name}={value!r}` is for transformers, and the backend is vllm",
                fix=f"leave out `{name}` or `backend`",
            )


def option_names(kind: type[ModelOptions]) -> list[str]:
    """Names of the options of `ModelOptions`, `ReadingOptions`, or of the latter in a subclass with more fields."""
    known = {option.name for option in fields(ReadingOptions)}
    return [option.name for option in fields(kind) if option.name in known]


def described(kind: type[ModelOptions]) -> Mapping[str, str]:
    """Option -> what it means."""
    return {option.name: option.metadata["description"] for option in fields(kind)}
