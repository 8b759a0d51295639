"""What a record scores with, made again on this machine: starter references, and probes that were fitted to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import Layer
from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.publish.scoring import is_here
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores.probe import Probe, fit_probe
from hf_safefilter.starter import SOURCE, TRAITS, starter_rows

if TYPE_CHECKING:
    from hf_safefilter.step import Step

_OPTIONS = ("form", "shrinkage", "strength", "weight")


def made_again(
    records: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    embed: Step | None,
    facts_of: Callable[[str], Mapping[str, Any] | None],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of steps, in which what this user's store does not have is exchanged for what was made again.

    Read on another kind of processor, vectors are rounded otherwise, so that what is made of them has another digest;
    scores differ by as much as those of rows that are read again. Nothing that was published is believed but how a
    probe was fitted.

    Args:
        records: Records of the steps.
        references: What the record says of each set of references.
        embed: The step that has read the rows.
        facts_of: How the probe with a digest was fitted; None if that is not known.

    Returns:
        The records, and what was made again, in words.

    Raises:
        MissingError: It cannot be made again: other references, labels, or another starter set.
        ModelError: The model that has read them is not to be had.
    """
    changed, made = [dict(record) for record in records], dict[str, None]()
    summaries = {str(one.get("digest")): one for one in references}
    indexes: dict[str, ReferenceIndex] = {}

    def index_of(digest: str) -> ReferenceIndex:
        if digest not in indexes and is_here(ReferenceIndex, digest):
            indexes[digest] = ReferenceIndex.of(digest)
        if digest not in indexes:
            indexes[digest] = _starter(summaries.get(digest, {}), embed)
            made["the starter references"] = None
        return indexes[digest]

    for record in changed:
        digest = record.get("references")
        if isinstance(digest, str) and not is_here(ReferenceIndex, digest):
            record["references"] = index_of(digest).digest
        digest = record.get("probe")
        if isinstance(digest, str) and not is_here(Probe, digest):
            facts = facts_of(digest)
            if facts is None:
                raise MissingError("how the probe was fitted is not published", fix="ask whoever has published the set")
            record["probe"] = _refitted(facts, index_of(str(facts.get("references")))).digest
            made["the probe"] = None
    return changed, list(made)


def _starter(summary: Mapping[str, Any], embed: Step | None) -> ReferenceIndex:
    """The starter references that a record describes, read again; their texts are compared before a model is loaded."""
    trait = {SOURCE: "harm", **{f"{SOURCE}: {name}": name for name in TRAITS}}.get(str(summary.get("source")))
    if trait is None or not isinstance(embed, EmbedLayers):
        raise MissingError("the references are neither whole in the store nor the starter set", fix="load them once")
    if "rows" not in summary:
        raise MissingError("the record does not say which rows the references are", fix="load the references once")
    if summary["rows"] != starter_digest(trait):
        raise MissingError(
            "the starter set of this version is not the one that was used", fix="install the version on the card"
        )
    return ReferenceIndex.starter(replace(embed, layers=_layers(summary.get("layers"), embed)), trait)


def starter_digest(trait: str) -> str:
    """`ReferenceIndex.rows_digest` of a starter set, from its texts alone."""
    if trait == "harm":
        sides = {"unsafe": starter_rows("unsafe"), "safe": [*starter_rows("safe"), *starter_rows("benign")]}
    else:
        sides = {side: [row for row in starter_rows(trait) if row["label"] == side] for side in ("unsafe", "safe")}
    lines = [f"{side} {row_id(one)}\n" for side, rows in sides.items() for one in as_conversations(rows)]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _refitted(facts: Mapping[str, Any], references: ReferenceIndex) -> Probe:
    counts = facts.get("counts")
    if "labels" in facts or not isinstance(counts, Mapping) or set(counts) != {"unsafe", "safe"}:
        raise MissingError("the probe was fitted to labels, which are not published", fix="ask for them")
    layers, options = facts.get("layers"), {name: facts[name] for name in _OPTIONS if name in facts}
    if not isinstance(layers, list) or len(options) < len(_OPTIONS):
        raise IntegrityError("how the probe was fitted is not said in full", fix="write the folder again")
    return fit_probe(references, layers, **options)


def _layers(names: Any, embed: EmbedLayers) -> tuple[Layer, ...]:
    """The layers that vectors have, whatever the positions that they are read at: "4_last_prompt" is of layer 4."""
    if not isinstance(names, list) or not names:
        return embed.layers
    found = dict.fromkeys(str(name).partition("_")[0] for name in names)
    return tuple(int(name) if name.isdecimal() else name for name in found)
