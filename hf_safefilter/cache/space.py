"""A space: everything that decides a vector, except row and layer. Vectors of one space may be mixed freely."""

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
from hf_safefilter.storage.signature import key_name

FORMAT = 3
"""Version of the file format: part of the name of a space, so that other versions do not read or change its files."""

FACTS = "space.json"


def rows_root() -> Path:
    """The folder of all spaces."""
    return store_root() / "rows"


@dataclass(frozen=True, slots=True)
class Space:
    """The facts that decide vectors, except row and layer.

    Attributes:
        facts: The facts as canonical JSON.
        label: Name of the model, for people. It is not part of the key: a folder that was moved is the same model.
    """

    facts: str
    label: str

    @classmethod
    def of(cls, facts: Mapping[str, Any], label: str) -> Space:
        """The space in which these plain JSON `facts` hold."""
        return cls(json.dumps({**facts, "format": FORMAT}, sort_keys=True, separators=(",", ":")), label)

    @property
    def digest(self) -> str:
        """32 hex digits: the name of the folder of the space, for users who share this one's key; see `part`."""
        return hashlib.sha256(f"{self.facts}{key_name()}".encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Folder of its rows."""
        return rows_root() / self.digest

    def layer_folder(self, layer: Layer) -> Path:
        """Folder of the parts of one layer."""
        return self.folder / str(layer)

    def describe_in(self, folder: Path) -> None:
        """Write the description of the space into its folder, unless the folder has one."""
        if not (folder / FACTS).is_file():
            body = {"label": self.label, "facts": json.loads(self.facts), "key": key_name()}
            atomic_text(folder / FACTS, json.dumps(body) + "\n")


def read_facts(folder: Path) -> tuple[str, dict[str, Any]]:
    """Label and facts of the space in `folder`, and under "key" the name of the key with which its parts are named.

    Raises:
        IntegrityError: The description is missing or damaged.
    """
    try:
        body = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return str(body["label"]), {**body["facts"], "key": body.get("key")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{folder} has no readable {FACTS}", fix=f"delete the folder: rm -r {folder}") from error
