"""Rows a second and share of the peak: a model of the size people tune, against transformers, on a GPU or a CPU.

    python -m benchmarks.throughput                                         # the shape of an 8B model, on a GPU
    python -m benchmarks.throughput --width 512 --inner 1408 --heads 8 --key-heads 4 --blocks 4 --rows 64

The model is random, its blocks have the shape of Llama 3.1 8B, and the mean of every window of 18 tokens of the second
half of each row is read after the last block that runs. Variants take turns in one process; each figure is a median of
rounds. transformers pads: batches of 16 rows as they come, and sorted by length in batches of as many tokens as ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from hf_safefilter.model.budget import token_budget
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.load import Trunk, pick_device, trunk_of
from hf_safefilter.model.windows import TokenSequence

WINDOW = 18


def main() -> None:
    """Measure and print."""
    options = asked(__doc__).parse_args()
    device = pick_device(options.device, None)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rows = random_rows(options)
    opened = trunk_of(random_model(options, device, dtype), options.blocks, device)
    layer = options.blocks
    peak = matrix_multiply_peak(device, dtype)
    read_layers(opened, rows[:8], [layer])  # settles how rows are read and how many fit
    held = token_budget(opened, bool(opened.packs))
    variants: dict[str, Callable[[], np.ndarray]] = {
        "transformers, padded, 16 rows": lambda: padded(opened, rows, layer, lambda lengths: len(lengths) >= 16, False),
        f"transformers, sorted, {held} tokens": lambda: padded(
            opened, rows, layer, lambda lengths: max(lengths) * (len(lengths) + 1) > held, True
        ),
        "ours": lambda: read_layers(opened, rows, [layer])[layer],
    }
    found, seconds = rounds(variants, options.rounds, device)
    exact = found["transformers, padded, 16 rows"]
    lengths = np.array([len(row.ids) for row in rows], float)
    work = useful_work(options, lengths)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "packed": opened.packs,
        "blocks": options.blocks,
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        "peak_tflops": peak / 1e12,
    }
    print(" ".join(f"{name}={value}" for name, value in figures.items()))
    print(f"\n{'':<38}{'rows/s':>9}{'tokens/s':>11}{'of peak':>9}{'ratio':>7}{'cosine':>10}")
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        spent = statistics.median(times)
        cosine = float(np.min(cosines(found[name], exact)))
        print(
            f"{name:<38}{len(rows) / spent:>9.1f}{lengths.sum() / spent:>11.0f}{work / spent / peak:>9.1%}"
            f"{first / spent:>7.2f}{cosine:>10.6f}"
        )
        figures[name] = {"seconds": times, "share_of_peak": work / spent / peak}
    print(json.dumps(figures))


def asked(text: str | None) -> argparse.ArgumentParser:
    """Options of the model's shape and of the rows."""
    ask = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--width", type=int, default=4096)
    ask.add_argument("--inner", type=int, default=14336)
    ask.add_argument("--heads", type=int, default=32)
    ask.add_argument("--key-heads", type=int, default=8)
    ask.add_argument("--blocks", type=int, default=16)
    ask.add_argument("--vocabulary", type=int, default=128_256)
    ask.add_argument("--rows", type=int, default=2048)
    ask.add_argument("--mean-length", type=int, default=300, help="tokens; lengths are spread as in chat data")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--device")
    ask.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    return ask


def config_of(options: argparse.Namespace) -> LlamaConfig:
    """The shape that is asked for."""
    return LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=options.inner,
        num_hidden_layers=options.blocks, num_attention_heads=options.heads, num_key_value_heads=options.key_heads,
        max_position_embeddings=8192, pad_token_id=0, use_cache=False,
    )  # fmt: skip


def random_model(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> LlamaModel:
    """A random one, made on the device in its own number format."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with device:
            model = LlamaModel(config_of(options)).eval().requires_grad_(False)
            model.norm = nn.Identity()  # transformers has the last block's output after the norm alone
            return model
    finally:
        torch.set_default_dtype(before)


def random_rows(options: argparse.Namespace) -> list[TokenSequence]:
    """Rows of random tokens, none alike, read in the windows of their second half."""
    random = np.random.default_rng(0)
    spread = random.lognormal(0, 0.7, options.rows)
    lengths = np.clip(options.mean_length * spread / spread.mean(), 24, 4096).astype(int)
    return [one_row(random.integers(1, options.vocabulary, length).astype(np.int32)) for length in lengths]


def one_row(ids: np.ndarray) -> TokenSequence:
    """A row that is read in the windows of its second half."""
    starts = range(len(ids) // 2, len(ids), WINDOW)
    return TokenSequence(ids, tuple((start, min(start + WINDOW, len(ids))) for start in starts))


def padded(
    opened: Trunk, rows: list[TokenSequence], layer: int, full: Callable[[list[int]], bool], ordered: bool
) -> np.ndarray:
    """What one writes with transformers: padded batches, all hidden states asked for, means taken afterwards."""
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at].ids)) if ordered else list(range(len(rows)))
    found: dict[int, np.ndarray] = {}
    batch: list[int] = []
    for place, at in enumerate(order):
        batch.append(at)
        if place + 1 < len(order) and not full([len(rows[one].ids) for one in batch]):
            continue
        longest = max(len(rows[one].ids) for one in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, one in enumerate(batch):
            ids[number, : len(rows[one].ids)] = torch.from_numpy(rows[one].ids)
            mask[number, : len(rows[one].ids)] = 1
        with torch.inference_mode():
            output = opened.model(
                input_ids=ids.to(opened.device), attention_mask=mask.to(opened.device), output_hidden_states=True
            )
            states = output.hidden_states[layer]
            for number, one in enumerate(batch):
                means = [states[number, start:stop].float().mean(0) for start, stop in rows[one].reads]
                found[one] = torch.stack(means).cpu().numpy()
        batch = []
    return np.concatenate([found[at] for at in range(len(rows))])


def rounds(
    variants: dict[str, Callable[[], np.ndarray]], count: int, device: torch.device
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Vectors, and seconds of each round, in which the variants take turns."""
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(count):
        for name, read in variants.items():
            synchronise(device)
            begin = time.perf_counter()
            found[name] = read()
            synchronise(device)
            seconds[name].append(time.perf_counter() - begin)
    return found, seconds


def synchronise(device: torch.device) -> None:
    """Wait for the work that the device has queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def useful_work(options: argparse.Namespace, lengths: np.ndarray) -> float:
    """Operations of the blocks at every token, and of causal attention; nothing for padding."""
    channels = options.width // options.heads
    weights = (
        2 * options.width**2 + 2 * options.width * options.key_heads * channels + 3 * options.width * options.inner
    )
    return float(options.blocks * (2 * weights * lengths.sum() + 2 * options.width * (lengths**2).sum()))


def matrix_multiply_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The fastest product of this device, in operations a second."""
    rows, widths = (8192, (4096, 8192)) if device.type == "cuda" else (2048, (1024, 2048))
    best = 0.0
    with torch.inference_mode():
        for width in widths:
            linear = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
            states = torch.randn(rows, width, device=device, dtype=dtype)
            for _ in range(12):
                synchronise(device)
                begin = time.perf_counter()
                linear(states)
                synchronise(device)
                best = max(best, 2 * rows * width**2 / (time.perf_counter() - begin))
    return best


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


if __name__ == "__main__":
    main()
