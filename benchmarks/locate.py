"""How fast LARF's layer search is: the reference's loop against ours, on the same model and prompts, in one run.

The reference copies the model for every block and scale, and generates every reply from scratch, one prompt at a time.
Rounds are interleaved and medians taken. Both tables of refusal counts are printed, and where they differ.

example:
  python -m benchmarks.locate
  python -m benchmarks.locate --model PATH --prompts prompts.jsonl --limit 110 --blocks 3,4
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.locate.refusals import matcher
from hf_safefilter.locate.sweep import Cell, Sweep
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.load import ModelKey, causal_lm, resolve_revision, tokenizer
from hf_safefilter.starter import starter_rows
from hf_safefilter.toy.corpus import heldout_prompts

SCALES = (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)


def reference(model, tokens, prompts, block, scale, new) -> int:
    """Refusals under one scaling, as the published script counts them."""
    louder = copy.deepcopy(model)
    layer = find_blocks(louder).blocks[block]
    with torch.no_grad():
        for module in (*layer.self_attn.children(), *layer.mlp.children()):
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(scale)
    refused = matcher("larf")
    count = 0
    for prompt in prompts:
        inputs = tokens.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = louder.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=0)
        count += refused(tokens.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return count


def over_refusal_prompts(file: str | None, model: str) -> list[str]:
    """Prompts that only sound harmful, from a file or a set that suits the model."""
    if file:
        return list(load_rows(file).rows["prompt"])
    if model == "toy":
        return heldout_prompts("borderline", 110, 0)
    return [row["prompt"] for row in starter_rows("over_refusal")]


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.locate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy", help="folder, Hub id or toy (toy); Llama-like, for the reference")
    parser.add_argument("--prompts", help="file with a prompt column")
    parser.add_argument("--limit", type=int, default=110, help="prompts used (110)")
    parser.add_argument("--blocks", help="e.g. 3,4 (all)")
    parser.add_argument("--new", type=int, default=32, help="tokens generated (32)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    prompts = over_refusal_prompts(options.prompts, options.model)[: options.limit]
    key = ModelKey(options.model, resolve_revision(options.model, None), "float32")
    model, tokens = causal_lm(key, torch.device("cpu")), tokenizer(key)
    n_blocks = len(find_blocks(model).blocks)
    blocks = [int(part) for part in options.blocks.split(",")] if options.blocks else list(range(n_blocks))
    cells = [Cell((block,), scale) for block in blocks for scale in SCALES]
    ratios, theirs, ours = [], {}, {}
    for number in range(options.rounds):
        begin = time.perf_counter()
        by_cell = Sweep(model, tokens, prompts, matcher("larf"), max_new_tokens=options.new).run(cells)
        middle = time.perf_counter()
        ours = {cell: verdicts.count("refusal") for cell, verdicts in by_cell.items()}
        theirs = {cell: reference(model, tokens, prompts, cell.blocks[0], cell.by, options.new) for cell in cells}
        end = time.perf_counter()
        ratios.append((end - middle) / (middle - begin))
        print(f"round {number + 1}: reference {end - middle:.1f} s, ours {middle - begin:.1f} s", flush=True)
    for name, counts in (("reference", theirs), ("ours", ours)):
        print(f"\nrefusals of {len(prompts)}, {name}\nblock" + "".join(f"{scale:>6}" for scale in SCALES))
        for block in blocks:
            print(f"{block:>5}" + "".join(f"{counts[Cell((block,), scale)]:>6}" for scale in SCALES))
    off = np.abs([theirs[cell] - ours[cell] for cell in cells])
    print(f"\nlargest difference of a count: {off.max()}; cells that differ: {(off > 0).sum()} of {len(cells)}")
    if options.json:
        figures = {"model": options.model, "prompts": len(prompts), "cells": len(cells), "ratios": ratios,
                   "ratio": statistics.median(ratios), "largest_difference": int(off.max())}  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"ratio: {statistics.median(ratios):.1f} (median of {', '.join(f'{ratio:.1f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
