"""Filter a fine-tuning set in Python, step by step, and see what went.

    python examples/filter_rows.py

It runs offline on the toy model and on rows made for the demo. For your own: another model in EmbedLayers, your rows,
and `ReferenceIndex.build` with harmful requests answered and refused in your domain.
"""

from __future__ import annotations

from datasets import Dataset

from hf_safefilter import (  # fmt: skip
    EmbedLayers,
    IsSafe,
    LarfScore,
    NearestScore,
    ReferenceIndex,
    choose_layer,
    evaluate,
    split,
    threshold_for,
)
from hf_safefilter.data.conversations import prompt_of
from hf_safefilter.demo import mixed_rows
from hf_safefilter.toy.corpus import reference_rows


def main() -> None:
    """Choose a layer on the references alone, score, decide, and show the nearest reference of a dropped row."""
    unsafe, safe = reference_rows(100, 7)
    every_layer = EmbedLayers("toy", layers=[1, 2, 3, 4, 5, 6])
    references = ReferenceIndex.build(unsafe, safe, every_layer, license="cc0-1.0", source="the toy corpus")
    choice = choose_layer(references)
    print(f"layer {choice.layer}, chosen on the references alone")

    rows = Dataset.from_list(mixed_rows())
    rows = rows.map(EmbedLayers("toy", layers=[choice.layer]), batched=True)
    rows = rows.map(LarfScore(references, choice.layer), batched=True)
    rows = rows.map(NearestScore(references, choice.layer), batched=True)
    for line in evaluate(rows, "label").table():
        print(f"  {line['score']:<8} AUROC {line['AUROC']:.3f}")

    threshold = threshold_for(rows, "larf_score", drop_fraction=0.1)
    parts = split(rows, IsSafe("larf_score", threshold))
    print(f"{len(parts.kept)} rows kept, {len(parts.dropped)} dropped: {threshold.rule}")
    texts = {row.row_id: prompt_of(row.conversation) for row in references.rows("unsafe")}
    print(f"the first dropped row stands nearest to a reference about: {texts[parts.dropped[0]['nearest_unsafe'][0]]}")


if __name__ == "__main__":
    main()
