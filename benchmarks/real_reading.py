"""What the benchmarks of detection, labels and effect share: a model, references read with it, labelled rows."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hf_safefilter import EmbedLayers, ReferenceIndex, load_rows
from hf_safefilter.columns import Layer
from hf_safefilter.locate.choose_reading import middle_layers
from hf_safefilter.starter import TRAITS, starter_rows

_TEXT = ["prompt", "response"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A step that reads rows at the layers to choose from, and references that it has read.

    `sides` holds the texts of the references: unsafe, refused and ordinary rows.
    """

    embed: EmbedLayers
    layers: tuple[Layer, ...]
    sides: list[list[dict[str, str]]]
    index: ReferenceIndex

    @classmethod
    def of(cls, options: argparse.Namespace) -> Reading:
        """That of the options of `add_options`."""
        template = {"chat_template": getattr(options, "chat_template", None)}
        first = EmbedLayers(options.model, [1], adapter=options.adapter, device=options.device, **template)
        every = first.all_layers()
        layers = every if len(every) <= 8 else middle_layers(len(every))
        where = {"revision": first.revision, "device": options.device, **template}
        embed = EmbedLayers(first.model, layers, position="mean,last_prompt", **where)
        sides = [[{name: row[name] for name in _TEXT} for row in side] for side in sides_of(options)]
        unsafe, safe, benign = sides
        index = ReferenceIndex.build(
            unsafe, safe, embed, benign=benign or None, license="unknown", source="a benchmark"
        )
        return cls(embed, tuple(layers), sides, index)


def sides_of(options: argparse.Namespace) -> list[list[dict[str, str]]]:
    """Unsafe, refused and ordinary rows: of a trait, which has no ordinary ones, or files, or the starter set."""
    if trait := options.trait:
        rows = starter_rows(trait)
        return [[row for row in rows if row["label"] == label] for label in ("unsafe", "safe")] + [[]]
    files = {"unsafe": options.unsafe, "safe": options.safe, "benign": None}
    return [starter_rows(side) if file is None else load_rows(file).rows.to_list() for side, file in files.items()]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that name the model and the references."""
    parser.add_argument("--model", default="toy", help="folder, Hub id, GGUF file, or toy")
    parser.add_argument("--adapter", help="PEFT adapter that is merged into the model")
    parser.add_argument("--device", help="cuda, mps or cpu; picked if left out")
    parser.add_argument("--chat-template", help="plain, for a model without one, such as an encoder")
    parser.add_argument("--unsafe", help="harmful requests answered; the starter set if left out")
    parser.add_argument("--safe", help="the same requests refused")
    parser.add_argument("--trait", choices=TRAITS, help="the starter references of a trait other than harm")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, of which both sides of the references are named or none."""
    options = parser.parse_args()
    if (options.unsafe is None) != (options.safe is None):
        parser.error("--unsafe and --safe go together")
    if options.trait is not None and options.unsafe is not None:
        parser.error("--trait names references itself: leave --unsafe and --safe out")
    return options


def labeled_rows(file: str, limit: int | None) -> Dataset:
    """The rows of a file that have a label, at most `limit` of them, spread evenly."""
    rows = load_rows(file).rows.select_columns([*_TEXT, "label"])
    kept = [at for at, label in enumerate(rows["label"]) if label is not None]
    return rows.select(spread(kept, limit)).flatten_indices()


def spread(places: list[int], limit: int | None) -> list[int]:
    """At most `limit` of `places`, spread evenly over them."""
    if not limit or len(places) <= limit:
        return places
    return [places[at] for at in np.linspace(0, len(places) - 1, limit).round().astype(int)]
