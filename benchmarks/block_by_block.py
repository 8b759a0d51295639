"""A model that is larger than its device: read block by block, beside reading it whole and beside accelerate.

    python -m benchmarks.block_by_block --rows 1024 --blocks 12 --output folder    # the shape of an 8B model, on a GPU
    python -m benchmarks.block_by_block --width 512 --inner 1408 --heads 8 --key-heads 4 --blocks 8 --rows 128 \
        --vocabulary 4000 --device cpu --output folder

A random model is saved to --output, and read three ways: whole (it fits), block by block, and by transformers with all
blocks on accelerate's "disk", which loads every block again for every batch. The ways take turns; medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from benchmarks.throughput import asked, cosines, padded, random_model, random_rows, rounds
from hf_safefilter.model import load
from hf_safefilter.model.budget import token_budget
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.load import ModelKey, Trunk, pick_device, resolve_revision


def main() -> None:
    """Measure and print."""
    ask = asked(__doc__)
    ask.add_argument("--output", type=Path, required=True, help="folder for the model and what accelerate offloads")
    options = ask.parse_args()
    device = pick_device(options.device, None)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    folder = options.output / "model"
    if not (folder / "config.json").exists():
        model = random_model(options, torch.device(device), getattr(torch, dtype))
        model.norm = torch.nn.RMSNorm(options.width, device=device, dtype=getattr(torch, dtype))
        model.save_pretrained(folder, max_shard_size="2GB")
        del model
    key = ModelKey(str(folder), resolve_revision(str(folder), None), dtype)
    rows, layer = random_rows(options), options.blocks - 1  # transformers has the last block's output after the norm
    held = load.trunk(key, layer, device)
    read_layers(held, rows[:8], [layer])
    size = 16 if device.type == "cpu" else max(16, token_budget(held, True) // 512)
    offloaded = on_disk(folder, options, device, dtype)
    ways: dict[str, Any] = {
        "whole": lambda: read_layers(load.trunk(key, layer, device), rows, [layer])[layer],
        "block by block": lambda: streamed(key, layer, device, rows),
        f"accelerate, disk, {size} rows a batch": lambda: padded(
            offloaded, rows, layer, lambda lengths: len(lengths) >= size, True
        ),
    }
    found, seconds = rounds(ways, options.rounds, device)
    lengths = [len(row.ids) for row in rows]
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(
        f"{options.blocks} blocks, {weights / 1e9:.1f} GB; {len(rows)} rows, {sum(lengths)} tokens; {dtype}, {device}"
    )
    print(f"\n{'':<38}{'seconds':>9}{'tokens/s':>11}{'times whole':>13}{'cosine':>10}")
    whole = statistics.median(seconds["whole"])
    for name, times in seconds.items():
        spent = statistics.median(times)
        cosine = float(np.min(cosines(found[name], found["whole"])))
        print(f"{name:<38}{spent:>9.2f}{sum(lengths) / spent:>11.0f}{spent / whole:>13.2f}{cosine:>10.6f}", flush=True)
    difference = np.abs(found["block by block"] - found["whole"]).max() / np.abs(found["whole"]).max()
    print(f"largest difference of block by block and whole: {difference:.1e}")
    print(json.dumps(seconds))


def streamed(key: ModelKey, layer: int, device: torch.device, rows: list[Any]) -> np.ndarray:
    """All rows in one call, as `EmbedLayers(stream_blocks="always")` reads them."""
    return read_layers(load.trunk(key, layer, device, stream_blocks="always"), rows, [layer])[layer]


def on_disk(folder: Path, options: argparse.Namespace, device: torch.device, dtype: str) -> Trunk:
    """The model with its blocks on accelerate's "disk"."""
    places = {"embed_tokens": str(device), "norm": str(device), "rotary_emb": str(device)}
    places |= {f"layers.{number}": "disk" for number in range(options.blocks)}
    model = AutoModel.from_pretrained(
        folder, dtype=getattr(torch, dtype), device_map=places, offload_folder=options.output / "offloaded"
    ).eval()
    return load.Trunk(model, load.find_blocks(model), options.blocks, options.blocks, options.width, device)


if __name__ == "__main__":
    main()
