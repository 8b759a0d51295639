"""How rows were read, in one word: vectors can only be compared where it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hf_safefilter.model.reading_options import positions_in

DECIDES = ("revision", "dtype", "position", "window", "chat_template_digest")
"""What decides what the vector of a span is. Which spans are read, and what becomes of rows that are too long, decides
how many vectors there are, and not what they are."""


def reading_digest(description: Mapping[str, Any]) -> str:
    """16 hex digits of what decides vectors, in an `EmbedLayers.describe()`.

    A model is known by its revision, so it may lie elsewhere. Of several positions the main one counts: vectors at the
    others have columns named after them.
    """
    facts = {name: description.get(name) for name in DECIDES}
    if facts["position"] is not None:
        facts["position"] = positions_in(facts["position"])[0]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
