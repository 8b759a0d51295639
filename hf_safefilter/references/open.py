"""A reference index from wherever it lies, checked to be read as the rows will be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_safefilter.errors import DataError
from hf_safefilter.references.index import ReferenceIndex

if TYPE_CHECKING:
    from hf_safefilter.embed import EmbedLayers

_ALIKE = ("model", "revision", "dtype", "position", "max_length", "chat_template_digest")


def open_references(place: str | Path, revision: str | None = None) -> ReferenceIndex:
    """A reference index from a local folder or the Hub."""
    return ReferenceIndex.load(place) if Path(place).is_dir() else ReferenceIndex.from_hub(str(place), revision)


def require_same_reading(index: ReferenceIndex, embed: EmbedLayers) -> None:
    """Raise unless the references were read as the rows will be: same model, commit, position, length and template.

    Raises:
        DataError: they were not.
    """
    ours = embed.describe()
    for name in _ALIKE:
        if index.embed.get(name) != ours.get(name):
            raise DataError(
                f"the references were read with another {name} than the rows will be",
                found=f"{index.embed.get(name)!r} against {ours.get(name)!r}",
                fix="build the references with this model: hf-safefilter reference build --help",
            )
