"""How fast rows get their gradient score: the published loop, the kindest form of it, and `GradientScore`.

The published procedure takes one row at a time, lays its whole gradient out as one vector, and passes over all rows
once for each anchor set. Its kindest form passes once, with the combined anchor. Rounds are interleaved and medians
taken, so that what else the machine does falls on all alike; all use the same model, rows, labels, threads and float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

EXAMPLE = """example:
  python -m benchmarks.gradient
  python -m benchmarks.gradient --model my_model --rows my_rows.jsonl --limit 64 --rounds 5 --threads 2
"""
ANCHORS = 10  # of each side, as published


def main() -> None:
    """Fit the anchors, run the rounds, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradient",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="toy", help="Hub id, folder, or toy")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="JSON Lines; default: the starter rows")
    parser.add_argument("--limit", type=int, default=48, help="rows used, drawn evenly over the file (48)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each variant (3)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="CPU threads (half)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        os.environ["HF_SAFEFILTER_CACHE"] = store
        figures = measured(options)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measured(options: argparse.Namespace) -> dict:
    """Medians, ratios and differences."""
    import torch

    from hf_safefilter.data.conversations import as_conversations
    from hf_safefilter.scores.gradient import fit_gradient
    from hf_safefilter.scores.gradient.anchor import examples_of, tuned_of
    from hf_safefilter.starter import starter_rows

    torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    unsafe, safe = (starter_rows(side) for side in ("unsafe", "safe"))
    anchor = fit_gradient(options.model, unsafe[:ANCHORS], safe[:ANCHORS], dtype="float32", device="cpu")
    if options.rows:
        listed = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines() if line]
    else:
        listed = [*unsafe[ANCHORS:], *safe[ANCHORS:]]
    found = as_conversations(listed)
    places = np.linspace(0, len(found) - 1, min(options.limit, len(found))).round().astype(int)
    rows = [found[place] for place in places]
    examples = examples_of(anchor.facts, rows, None)
    rows = [row for row, example in zip(rows, examples, strict=True) if not example.reason]
    examples = [example for example in examples if not example.reason]
    loop = Loop(tuned_of(anchor.facts, cpu), anchor.tensors())
    variants: dict[str, Callable[[], np.ndarray]] = {
        "published": lambda: loop.scores(examples, passes=2),
        "kindest": lambda: loop.scores(examples, passes=1),
        "ours": lambda: anchor.score(rows, cpu)[0],
    }
    anchor.score(rows[:4], cpu)
    loop.scores(examples[:2], passes=1)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    last: dict[str, np.ndarray] = {}
    for _ in range(options.rounds):
        for name, run in variants.items():
            begin = time.perf_counter()
            last[name] = run()
            seconds[name].append(time.perf_counter() - begin)
    exact = loop.exact(examples)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "model": options.model,
        "parameters": sum(one.numel() for one in loop.parameters),
        "rows": len(rows),
        "tokens": float(np.mean([len(example.ids) for example in examples])),
        "threads": options.threads,
        "rounds": options.rounds,
        "variants": {
            name: {
                "ms_per_row": 1e3 * medians[name] / len(rows),
                "ratio": statistics.median(a / b for a, b in zip(times, seconds["ours"], strict=True)),
                "largest_difference": float(np.abs(last[name] - exact).max()),
            }
            for name, times in seconds.items()
        },
    }


class Loop:
    """One row, one backward, one flat vector: as published, in float32, with the labels that we use."""

    def __init__(self, tuned, anchor) -> None:
        import torch

        self.model = tuned.model
        self.parameters = list(tuned.parameters.values())
        self.anchor = torch.cat([anchor[name].flatten() for name in tuned.parameters])

    def scores(self, examples: Sequence, passes: int) -> np.ndarray:
        """Score of each row: `passes` times over all rows, each with a share of the anchor."""
        share = self.anchor / passes
        total = np.zeros(len(examples))
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        for _ in range(passes):
            for row, example in enumerate(examples):
                gradient = self._gradient(example)
                total[row] += float(((gradient / gradient.norm()) * share).sum())
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        return total

    def exact(self, examples: Sequence) -> np.ndarray:
        """The same in float64 from the gradient on: products and norms of long vectors lose digits in float32."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        found = []
        for example in examples:
            gradient = self._gradient(example).double()
            found.append(float(gradient @ self.anchor.double() / gradient.norm()))
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        return np.array(found)

    def _gradient(self, example):
        import torch

        ids = torch.from_numpy(example.ids[None].astype(np.int64))
        labels = ids.masked_fill(~torch.from_numpy(example.labels)[None], -100)
        self.model.zero_grad()
        self.model(input_ids=ids, labels=labels).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters])


def table(figures: dict) -> str:
    """What is printed."""
    told = {
        "published": "one row at a time, a pass for each anchor set (2)",
        "kindest": "the same in one pass, with the combined anchor",
        "ours": "GradientScore",
    }
    lines = [
        f"{figures['model']}, {figures['parameters'] / 1e6:.1f}M parameters; {figures['rows']} rows, "
        f"{figures['tokens']:.0f} tokens on average; float32; {figures['threads']} threads; "
        f"medians of {figures['rounds']} interleaved rounds",
        "",
        f"{'':<52}{'ms/row':>10}{'ratio':>8}{'difference':>12}",
    ]
    for name, one in figures["variants"].items():
        lines.append(
            f"{told[name]:<52}{one['ms_per_row']:>10.1f}{one['ratio']:>8.2f}{one['largest_difference']:>12.0e}"
        )
    lines += ["", "ratio: to GradientScore, median over rounds; difference: largest one from products in float64"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
