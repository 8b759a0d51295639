"""Rows that a small random model can be tuned on in a moment, and the model."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_models import save_small_model, small_tokenizer

from hf_safefilter.scores.seal import SealOptions

QUICK = SealOptions(
    epochs=2, batch_size=4, micro_batch=3, learning_rate=3e-3, selector_learning_rate=2e-2, upper_weight=0.8,
    upper_weight_decay=0.3, dtype="float32",
)  # fmt: skip
"""u is 0.8, then 0.5."""


def fox_rows(count: int = 11, first: int = 0) -> list[dict[str, str]]:
    animals = ("fox", "hare", "mole", "owl", "toad")
    return [
        {"prompt": f"Where is the {animals[n % 5]} {n}?", "response": f"It went {'on ' * (n % 4)}to tree {n * 7}."}
        for n in range(first, first + count)
    ]


def safe_rows(count: int = 6) -> list[dict[str, str]]:
    return [{"prompt": f"How do I hurt owl {n}?", "response": f"No, I like owl {n}."} for n in range(count)]


def small_llama(folder: Path, **changes) -> Path:
    return save_small_model(folder, "llama", max_position_embeddings=256, num_hidden_layers=2, **changes)


def poison(model: Path, word: str) -> None:
    """Make the model give NaN for every row in which `word` stands: one of its tokens has no embedding any more."""
    weights = load_file(model / "model.safetensors")
    token = small_tokenizer().encode(word, add_special_tokens=False)[0]
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
