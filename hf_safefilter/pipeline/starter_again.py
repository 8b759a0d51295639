"""The references of a record made again on this machine, where they are those of the starter set and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import Layer
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import MissingError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.starter import SOURCE, TRAITS

if TYPE_CHECKING:
    from hf_safefilter.step import Step


def with_starter(
    records: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], embed: Step | None
) -> tuple[list[dict[str, Any]], bool]:
    """The records of steps, in which starter references that are not in this user's store are exchanged.

    Read on another kind of processor their vectors are rounded otherwise, so they may have another digest; scores with
    them differ by as much as those of rows that are read again.

    Args:
        records: Records of the steps.
        references: What the record says of each set of references.
        embed: The step that has read the rows.

    Returns:
        The records, and whether something was made again.

    Raises:
        MissingError: The starter set of this version holds other rows.
        ModelError: The model that has read them is not to be had.
    """
    changed = [dict(record) for record in records]
    made = False
    for summary in references:
        digest, trait = str(summary.get("digest")), _trait(str(summary.get("source")))
        used = [record for record in changed if record.get("references") == digest]
        if not used or trait is None or not isinstance(embed, EmbedLayers) or _is_here(digest):
            continue
        index = ReferenceIndex.starter(replace(embed, layers=_layers(summary.get("layers") or ())), trait)
        if index.rows_digest != summary.get("rows"):
            raise MissingError(
                "the starter set of this version is not the one that was used", fix="install the version on the card"
            )
        for record in used:
            record["references"] = index.digest
        made = True
    return changed, made


def _trait(source: str) -> str | None:
    """What the unsafe side of starter references shows; None for others."""
    return {SOURCE: "harm", **{f"{SOURCE}: {trait}": trait for trait in TRAITS}}.get(source)


def _layers(names: Sequence[Any]) -> tuple[Layer, ...]:
    """The layers that vectors have, whatever the positions that they are read at: "4_last_prompt" is of layer 4."""
    found = dict.fromkeys(str(name).partition("_")[0] for name in names)
    return tuple(int(name) if name.isdecimal() else name for name in found)


def _is_here(digest: str) -> bool:
    try:
        ReferenceIndex.of(digest)
    except MissingError:
        return False
    return True
