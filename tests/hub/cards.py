"""The metadata at the top of a card."""

from __future__ import annotations

import re
from typing import Any

import yaml


def front_matter(text: str) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        return None, [{"message": f"YAML Metadata Error: {error}"}]
    if card is not None and not isinstance(card, dict):
        return None, [{"message": "YAML Metadata Error: not a mapping"}]
    return card, []
