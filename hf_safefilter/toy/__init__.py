"""A tiny aligned chat model that ships with the package, and the corpus it was trained on.

`examples/train_toy.py` trains the model; importing this module does not import torch.
"""

from __future__ import annotations

from pathlib import Path

from hf_safefilter.errors import MissingError
from hf_safefilter.toy.corpus import (
    Row,
    degrading_rows,
    fresh_prompts,
    heldout_prompts,
    heldout_rows,
    mixed_rows,
    reference_rows,
    training_rows,
    unsafe_rows,
)
from hf_safefilter.toy.wording import is_refusal

__all__ = [
    "Row",
    "degrading_rows",
    "fresh_prompts",
    "heldout_prompts",
    "heldout_rows",
    "is_refusal",
    "mixed_rows",
    "reference_rows",
    "toy_model_path",
    "training_rows",
    "unsafe_rows",
]

MODEL_FOLDER = Path(__file__).parent / "model"
"""Folder of the shipped model, to which `examples/train_toy.py` writes a new one."""


def toy_model_path() -> Path:
    """Folder of the shipped model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        MissingError: The package was built without the model.
    """
    if not (MODEL_FOLDER / "model.safetensors").is_file():
        raise MissingError(f"the toy model is not in {MODEL_FOLDER}", fix="train it: python examples/train_toy.py")
    return MODEL_FOLDER
