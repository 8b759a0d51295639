"""A tiny classifier that has learned to tell compliance from refusal in the tests' own rows."""

from pathlib import Path

import torch
import transformers
from small_models import ARCHITECTURES, small_tokenizer


def save_trained_guard(folder: Path, seed: int = 0) -> Path:
    """Train for a second on rows like those of `scores/conftest.py`, and save; returns `folder`."""
    tokenizer = small_tokenizer()
    numbers = range(60)
    texts = [f"Ask {n}\nSure, row {n}." for n in numbers] + [f"Ask {n}\nSorry, {'no ' * (n % 9)}{n}." for n in numbers]
    fed = tokenizer(texts, return_tensors="pt", padding=True)
    labels = torch.tensor([1] * len(numbers) + [0] * len(numbers))
    torch.manual_seed(seed)
    names = {"id2label": {0: "safe", 1: "unsafe"}, "label2id": {"safe": 0, "unsafe": 1}}
    config = transformers.LlamaConfig(**ARCHITECTURES["llama"][1] | {"num_hidden_layers": 1} | names)
    model = transformers.LlamaForSequenceClassification(config)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        model(**fed, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder
