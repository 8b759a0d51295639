"""A space: all that decides a vector, but for the row and the layer. Vectors of one space may be mixed freely."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_safefilter.columns import Layer
from hf_safefilter.errors import IntegrityError
from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.storage.atomic import atomic_text

FORMAT = 1
"""Of the files; part of every space's name, so that another version neither reads nor harms what this one wrote."""

FACTS = "space.json"


def rows_root() -> Path:
    """The folder of all spaces."""
    return store_root() / "rows"


@dataclass(frozen=True, slots=True)
class Space:
    """Facts that decide vectors, as canonical JSON.

    Attributes:
        facts: canonical JSON of the facts.
        label: for people: the name of the model. Not part of the key: a folder that moved is the same model.
    """

    facts: str
    label: str

    @classmethod
    def of(cls, facts: Mapping[str, Any], label: str) -> Space:
        """The space in which these plain JSON `facts` hold."""
        return cls(json.dumps({**facts, "format": FORMAT}, sort_keys=True, separators=(",", ":")), label)

    @property
    def digest(self) -> str:
        """32 hex digits: the name of its folder."""
        return hashlib.sha256(self.facts.encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Where its rows lie."""
        return rows_root() / self.digest

    def home(self, layer: Layer) -> Path:
        """Folder of the parts of one layer."""
        return self.folder / str(layer)

    def introduce(self, folder: Path) -> None:
        """Write into its folder what it is, unless that is done."""
        if not (folder / FACTS).is_file():
            atomic_text(folder / FACTS, json.dumps({"label": self.label, "facts": json.loads(self.facts)}) + "\n")


def read_facts(folder: Path) -> tuple[str, dict[str, Any]]:
    """Label and facts of the space in `folder`.

    Raises:
        IntegrityError: its description is gone or damaged.
    """
    try:
        body = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return str(body["label"]), dict(body["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder} does not say what it holds", fix=f"delete it: rm -r {folder}") from error
