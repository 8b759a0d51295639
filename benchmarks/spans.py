"""What spans cost: the mean of every answer against its last token, and a conversation of ten turns in one forward.

The model is that of `benchmarks.embed`. Rounds are interleaved; medians of paired ratios are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.embed import BLOCKS, make_model, pick_rows

EXAMPLE = """example:
  python -m benchmarks.spans
  python -m benchmarks.spans --model folder/of/a/model --layers 6 12 18 --rows my_rows.jsonl --limit 128 --rounds 9
"""
TURNS = 10


def main() -> None:
    """Time the readings and print their ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spans",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", type=Path, metavar="FILE", help="JSON Lines; default: the starter rows")
    parser.add_argument("--limit", type=int, default=60, help="rows used (60)")
    parser.add_argument("--model", help=f"folder or Hub id; default: random weights, {BLOCKS} blocks")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 9, 12], help="layers, each timed by itself")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each variant (5)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="CPU threads (half)")
    options = parser.parse_args()
    os.environ |= {"HF_SAFEFILTER_ROW_CACHE": "off", "TRANSFORMERS_VERBOSITY": "error"}
    import torch

    torch.set_num_threads(options.threads)
    rows = pick_rows(options.rows, options.limit)
    with tempfile.TemporaryDirectory() as scratch:
        if options.model is None:
            make_model(Path(scratch), rows)
        model = options.model or scratch
        print(f"{len(rows)} rows, {options.threads} threads, medians of {options.rounds} interleaved rounds")
        print(f"{'layer':>6}{'mean / last, tokens/s':>24}{'one forward / a row a turn':>28}")
        for layer in options.layers:
            mean, turns = measure(model, layer, rows, options.rounds)
            print(f"{layer:>6}{mean:>24.3f}{turns:>28.2f}", flush=True)


def measure(model: str, layer: int, rows: list[dict[str, Any]], rounds: int) -> tuple[float, float]:
    """Speed of the mean in that of the last token, and of conversations read at once in that of each turn's own row."""
    from hf_safefilter.embed import EmbedLayers

    last, mean = EmbedLayers(model, [layer], position="last"), EmbedLayers(model, [layer])
    talks = [
        {"messages": [turn for row in rows[at : at + TURNS] for turn in row["messages"]]}
        for at in range(0, len(rows), TURNS)
    ]
    parts = [
        {"messages": talk["messages"][: at + 1]}
        for talk in talks
        for at, turn in enumerate(talk["messages"])
        if turn["role"] == "assistant"
    ]
    variants: dict[str, Callable[[], Any]] = {
        "last": lambda: last(_batch(rows)),
        "mean": lambda: mean(_batch(rows)),
        "talks": lambda: mean(_batch(talks)),
        "parts": lambda: [mean(_batch([part])) for part in parts],
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for done in range(rounds):
        print(f"layer {layer}: round {done + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return _ratio(seconds["last"], seconds["mean"]), _ratio(seconds["parts"], seconds["talks"])


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"messages": [row["messages"] for row in rows]}


if __name__ == "__main__":
    main()
