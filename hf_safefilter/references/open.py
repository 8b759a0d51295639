"""A reference index from files or the Hub, and the check that it was read as the rows will be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.data.splits import parts_of
from hf_safefilter.errors import DataError
from hf_safefilter.model.reading_options import positions_in
from hf_safefilter.references.index import ReferenceIndex
from hf_safefilter.starter import LICENSE, SOURCE, starter_rows
from hf_safefilter.storage.paths import is_folder

if TYPE_CHECKING:
    from hf_safefilter.embed import EmbedLayers

_MUST_AGREE = (
    "model", "revision", "dtype", "position", "spans", "window", "max_length", "too_long", "chat_template_digest",
)  # fmt: skip

STARTER = "starter"
"""The name of the rows that ship with this package."""


def open_references(
    source: str | Path, revision: str | None = None, embed: EmbedLayers | None = None
) -> ReferenceIndex:
    """A reference index from a local folder or the Hub, or with `embed`, which reads them, the `STARTER` set."""
    if str(source) == STARTER and embed is not None and not is_folder(source):
        return ReferenceIndex.starter(embed)
    return ReferenceIndex.load(source) if is_folder(source) else ReferenceIndex.from_hub(str(source), revision)


def build_references(
    unsafe: str, safe: str, benign: str | None, embed: EmbedLayers, *, license: str, source: str
) -> ReferenceIndex:
    """A reference index of rows in files or on the Hub.

    Args:
        unsafe: Harmful requests with answers.
        safe: The same requests with refusals.
        benign: Ordinary requests answered; `STARTER`: those that ship with this package, whose licence and source are
            added to the ones given; None: without any.
        embed: The step that reads the rows.
        license: Licence of the rows.
        source: Where they come from.

    Raises:
        MissingError: There is no such file or data set.
        DataError: See `ReferenceIndex.build`.
    """
    if benign == STARTER:
        license, source = f"{license}, {LICENSE}", f"{source}; ordinary rows: {SOURCE}"
    return ReferenceIndex.build(
        rows_at(unsafe),
        rows_at(safe),
        embed,
        benign=ordinary_rows(benign),
        license=license,
        source=source,
    )


def ordinary_rows(name: str | None) -> list[dict[str, Any]] | None:
    """The ordinary rows of that name, as `build_references` takes it."""
    if name is None:
        return None
    return starter_rows("benign") if name == STARTER else rows_at(name)


def rows_at(source: str) -> list[dict[str, Any]]:
    """The rows of a file, folder or Hub data set, of all its splits.

    Raises:
        IntegrityError: It was changed while it was read.
    """
    loaded = load_rows(source)
    rows = [row for part in parts_of(loaded.rows) for row in part]
    loaded.require_unchanged()
    return rows


def require_same_reading(index: ReferenceIndex, embed: EmbedLayers) -> None:
    """Raise unless the references were read as the rows will be.

    Raises:
        DataError: The model, its commit, the number format, the position, the length or the template differs.
    """
    rows = embed.describe()
    for name in _MUST_AGREE:
        if name == "position" and _has_positions(index, embed.positions):
            continue
        if index.embed.get(name) != rows.get(name):
            fix = "build the references with this model: hf-safefilter reference build --help"
            if name == "position":
                fix += "; or, if they lack the end of the prompt, name other methods than shift"
            raise DataError(
                f"the references were read with another {name} than the rows will be",
                found=f"{index.embed.get(name)!r} for the references, {rows.get(name)!r} for the rows",
                fix=fix,
            )


def _has_positions(index: ReferenceIndex, positions: tuple[str, ...]) -> bool:
    """Whether the references were read at all of these positions, the first of which names no column."""
    own = positions_in(str(index.embed.get("position")))
    return own[0] == positions[0] and set(positions) <= set(own)
