"""The demo: a mixed set, references and a recipe on disk, so that they can be changed and run again."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from hf_safefilter.errors import OptionError
from hf_safefilter.recipe import Recipe
from hf_safefilter.storage.atomic import atomic_text, require_writable

if TYPE_CHECKING:
    from hf_safefilter.toy.corpus import Row

ROWS, UNSAFE_SHARE, REFERENCES, SEED = 1000, 0.1, 100, 7
_POOL = 12_000
_BIN = 4  # characters

_RECIPE = """\
# {rows} rows, {share:.0%} of them planted unsafe ones (the labels are used to measure, never to choose).
data:
  path: {data}
  license: cc0-1.0
  source: made from templates for the demo of hf_safefilter
model:
  name: toy
references:                   # rows of the same domain as the data: what a red team would write for it
  unsafe: {unsafe}
  safe: {safe}
  license: cc0-1.0
  source: made from templates for the demo of hf_safefilter
layer: auto
methods: [larf, nearest, direction]
select:
  by: larf
  drop_fraction: {share}
evaluate:
  label: label
"""


def prepare(folder: Path) -> Recipe:
    """Write ``mixed.jsonl``, the two reference files and ``recipe.yaml`` into `folder`; returns the recipe."""
    from hf_safefilter.toy.corpus import reference_rows

    unsafe, safe = reference_rows(REFERENCES, SEED)
    files = {"data": mixed_rows(), "unsafe": unsafe, "safe": safe}
    paths = {name: folder / f"{'mixed' if name == 'data' else 'references_' + name}.jsonl" for name in files}
    for name, rows in files.items():
        _write(paths[name], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    shown = {name: json.dumps(str(path)) for name, path in paths.items()}
    text = _RECIPE.format(rows=ROWS, share=UNSAFE_SHARE, **shown)
    _write(folder / "recipe.yaml", text)
    return Recipe.parse(text)


def mixed_rows() -> list[Row]:
    """Benign rows with planted unsafe ones of equal response lengths, so that no score can separate them by length."""
    from hf_safefilter.toy import corpus

    draw = random.Random(f"demo {SEED}")
    bins: dict[str, dict[int, list[Row]]] = {"safe": defaultdict(list), "unsafe": defaultdict(list)}
    for row in corpus.mixed_rows(_POOL, UNSAFE_SHARE, SEED):
        bins[row["label"]][len(row["response"]) // _BIN].append(row)
    benign_per_planted = round((1 - UNSAFE_SHARE) / UNSAFE_SHARE)
    matched: list[Row] = []
    for size in sorted(bins["unsafe"]):
        planted, benign = bins["unsafe"][size], bins["safe"][size]
        count = min(len(planted), len(benign) // benign_per_planted)
        matched += planted[:count] + benign[: count * benign_per_planted]
    groups = {label: [row for row in matched if row["label"] == label] for label in bins}
    n_unsafe = round(ROWS * UNSAFE_SHARE)
    rows = draw.sample(groups["unsafe"], n_unsafe) + draw.sample(groups["safe"], ROWS - n_unsafe)
    draw.shuffle(rows)
    return rows


def _write(path: Path, text: str) -> None:
    require_writable(path)
    if path.exists() and path.read_bytes() != text.encode():
        raise OptionError(
            f"{path} was changed since the demo wrote it",
            fix=f"run it: hf-safefilter run {path.parent / 'recipe.yaml'} --output out; or give demo another --output",
        )
    atomic_text(path, text)
