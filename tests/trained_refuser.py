"""A tiny causal model that has learned to refuse what the tests' own rows ask."""

from pathlib import Path

import torch
import transformers
from small_models import ARCHITECTURES, small_tokenizer


def save_trained_refuser(folder: Path, seed: int = 0) -> Path:
    """Train for a second on refusals such as those in `scores/conftest.py`, and save; returns `folder`."""
    tokenizer = small_tokenizer()
    rows = [
        [{"role": "user", "content": f"Ask {n}"}, {"role": "assistant", "content": f"Sorry, {'no ' * (n % 9)}{n}."}]
        for n in range(60)
    ]
    fed = tokenizer.apply_chat_template(rows, padding=True, return_dict=True, return_tensors="pt")
    labels = fed["input_ids"].masked_fill(fed["attention_mask"] == 0, -100)
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**ARCHITECTURES["llama"][1] | {"num_hidden_layers": 1})
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        model(**fed, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
