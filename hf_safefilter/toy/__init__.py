"""The toy: a tiny aligned chat model that ships with the package, and the corpus it was trained on.

`examples/train_toy.py` makes the model; nothing here imports torch.
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
"""Where the shipped model lies, and where `examples/train_toy.py` puts a new one."""


def toy_model_path() -> Path:
    """Folder of the shipped model, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        MissingError: the package was built without it.
    """
    if not (MODEL_FOLDER / "model.safetensors").is_file():
        raise MissingError(f"the toy model is not in {MODEL_FOLDER}", fix="make it: python examples/train_toy.py")
    return MODEL_FOLDER
