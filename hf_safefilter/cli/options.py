"""Options that several commands share: spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from hf_safefilter.errors import OptionError

Rows = Annotated[
    str, typer.Argument(help="Hub id, .jsonl/.json/.csv/.parquet/.arrow file, or folder.", show_default=False)
]
Model = Annotated[str, typer.Option(help="Hub id, local folder, or 'toy' for the model that ships with this package.")]
Layers = Annotated[str, typer.Option(help="What is read: hidden_states[k], e.g. 12 or 8,12 or norm.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; an earlier output there is replaced when done.")
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit of the model.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Position = Annotated[str, typer.Option(help="last, last_content, mean_response or last_prompt.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest row in tokens; the middle of longer responses is cut.")]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, mps or cpu; picked if left out.")]
Attn = Annotated[str, typer.Option(help="auto, sdpa, eager, flash_attention_2, flash_attention_3 or flex_attention.")]
Template = Annotated[
    str | None, typer.Option("--chat-template", help="Jinja template (or 'plain') for a model without one.")
]
Column = Annotated[
    list[str] | None, typer.Option("--column", help="Where things stand, e.g. --column prompt=q --column response=a.")
]
Split = Annotated[str | None, typer.Option(help="Only this split.")]
Folder = Annotated[Path, typer.Argument(help="Folder written by an earlier command.", show_default=False)]
License = Annotated[str, typer.Option(help="Licence, as the Hub spells it, e.g. cc-by-4.0.")]
Source = Annotated[str, typer.Option(help="Where the rows come from: a Hub id, a URL or a sentence.")]


def layers_of(text: str) -> list[int | str]:
    """``"8,12,norm"`` -> ``[8, 12, "norm"]``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() or part == "norm" for part in parts):
        raise OptionError(f"--layers {text!r} names no layers", fix="use e.g. --layers 12 or --layers 8,12,norm")
    return [int(part) if part.isdigit() else part for part in parts]


def pairs_of(given: list[str] | None, flag: str) -> dict[str, str] | None:
    """``["prompt=q", "response=a"]`` -> ``{"prompt": "q", "response": "a"}``."""
    if not given:
        return None
    pairs = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not (name and sign and value):
            raise OptionError(f"{flag} {one!r} is not name=value", fix=f"use e.g. {flag} prompt=question")
        pairs[name] = value
    return pairs


def values_of(given: list[str] | None, flag: str) -> dict[str, Any]:
    """``["k=5", "targets=[q_proj, v_proj]"]`` -> ``{"k": 5, "targets": ["q_proj", "v_proj"]}``."""
    values = {}
    for name, text in (pairs_of(given, flag) or {}).items():
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(f"{flag} {name}={text} is no value", fix="quote a text that holds signs") from error
    return values
