"""The demo: a mixed set on disk and a recipe for it, so that it can be changed and run again."""

from __future__ import annotations

import json
from pathlib import Path

from hf_safefilter.artifacts import atomic_text
from hf_safefilter.errors import OptionError
from hf_safefilter.recipe import Recipe

ROWS, UNSAFE_SHARE, SEED = 1000, 0.1, 7

_RECIPE = """\
# {rows} rows, of which {share:.0%} are planted unsafe ones (the labels are used to measure, never to choose).
data:
  path: {path}
  license: cc0-1.0
  source: made from templates for the demo of hf_safefilter
model:
  name: toy
references:
  path: starter
layer: auto
methods: [larf, nearest, direction]
select:
  by: larf
  drop_fraction: {share}
evaluate:
  label: label
"""


def prepare(folder: Path) -> Recipe:
    """Write ``mixed.jsonl`` and ``recipe.yaml`` into `folder`; returns the recipe."""
    from hf_safefilter.toy.corpus import mixed_rows

    rows = mixed_rows(ROWS, UNSAFE_SHARE, SEED)
    data = folder / "mixed.jsonl"
    _write(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    text = _RECIPE.format(rows=ROWS, share=UNSAFE_SHARE, path=json.dumps(str(data)))
    _write(folder / "recipe.yaml", text)
    return Recipe.parse(text)


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise OptionError(
            f"{path} was changed since the demo wrote it",
            fix=f"run it: hf-safefilter run {path.parent / 'recipe.yaml'} --output out; or give demo another --output",
        )
    atomic_text(path, text)
