"""What a tokenizer file may do to a text: a chain of replacements that makes a letter into a billion is refused.

The growth is counted from the file before anything is normalised, the tokenizer's own added tokens included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_safefilter.errors import ModelError
from hf_safefilter.model.model_files import read_json
from hf_safefilter.model.source import ModelKey, base_and_adapter, file_on_hub, gguf_file, local_folder

_FILE = "tokenizer.json"
_MOST = 100  # times a text's length; those in use make a letter into three at most
_LONGEST_WORD = 1 << 16  # characters of an added token


def require_modest_tokenizer(key: ModelKey) -> None:
    """Hold a model's ``tokenizer.json`` to the rules, before it is loaded; one inside a GGUF file has no such rules.

    Args:
        key: The model; its revision may be a branch.

    Raises:
        ModelError: See `require_modest`.
    """
    base, _ = base_and_adapter(key.model)
    folder = None if gguf_file(base) else local_folder(base)
    file = file_on_hub(key, _FILE) if folder is None else folder / _FILE
    if file is not None and file.is_file():
        require_modest(read_json(file), key.model)


def require_modest(tokenizer: Mapping[str, Any], name: str) -> None:
    """Raise if a tokenizer's normaliser or decoder could make a text much longer, or an added token is no word.

    Args:
        tokenizer: The content of ``tokenizer.json``.
        name: The model, for messages.

    Raises:
        ModelError: It could, or is.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = _growth(tokenizer.get(part))
        if growth > _MOST:
            raise ModelError(
                f"the {part} of {name} could make a text {min(growth, 10**12):,} times as long",
                fix="use another tokenizer.json: replacements may lengthen a text a little, not that much",
            )
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        content = token.get("content") if isinstance(token, Mapping) else None
        if isinstance(content, str) and len(content) > _LONGEST_WORD:
            raise ModelError(f"{name} has an added token of {len(content)} characters", fix="use another tokenizer")


def _growth(part: Any) -> int:
    """How many times as long as a text of one character what comes out of it can be."""
    if isinstance(part, list):
        total = 1
        for step in part:
            total *= _growth(step)
        return total
    if not isinstance(part, Mapping):
        return 1
    inner = [part[key] for key in ("normalizers", "pretokenizers", "decoders") if isinstance(part.get(key), list)]
    if inner:
        return _growth(inner[0])
    if part.get("type") == "Replace":
        return max(1, len(_text(part.get("content"))) // max(1, _shortest(part.get("pattern"))))
    if part.get("type") == "Prepend":
        return 1 + len(_text(part.get("prepend")))
    return 1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shortest(pattern: Any) -> int:
    """Length of the shortest text that a pattern takes away; of a regular expression one character."""
    return len(_text(pattern.get("String"))) or 1 if isinstance(pattern, Mapping) else 1
