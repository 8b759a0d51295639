"""Adapters: merged by PEFT into the weights of a model in memory; nothing is written."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.errors import MissingError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def merged(model: PreTrainedModel, folder: Path, name: str) -> PreTrainedModel:
    """The model with the weights of the adapter in `folder` added to its own.

    Args:
        model: A whole causal language model, perhaps without its upper blocks.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT saves them.
        name: What the adapter is called, for messages.

    Raises:
        MissingError: PEFT is not installed.
        ModelError: The adapter is of a kind that cannot be merged, or it belongs to another base.
    """
    if find_spec("peft") is None:
        raise MissingError("reading an adapter needs peft: not installed", fix="pip install 'hf_safefilter[train]'")
    from peft import PeftModel

    config = _config(folder, name)
    other = ModelError(
        f"the adapter {name} does not fit {type(model).__name__}: it was made for another model",
        found=f"it names {config.get('base_model_name_or_path') or 'no base model'}",
        fix="name the model that it was trained on, with its revision",
    )
    before = _digestible(model)
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        _require_known_weights(wrapped, folder, model, other)
        whole = cast("PreTrainedModel", wrapped.merge_and_unload())
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise other from error
    if before == _digestible(whole):
        raise ModelError(
            f"the adapter {name} changes nothing", found="its weights are zero", fix="leave it out, or train it"
        )
    return whole


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name} is not an adapter as PEFT saves it", fix="save it again") from error
    if kind not in ("LORA", "IA3", "LOHA", "LOKR", "BOFT", "OFT", "HRA", "FOURIERFT", "RANDLORA", "DELORA"):
        raise ModelError(
            f"an adapter of the type {kind} cannot be merged into weights", found=name, fix="use a LoRA adapter"
        )
    return cast("dict[str, Any]", config)


def _require_known_weights(wrapped: Any, folder: Path, model: PreTrainedModel, other: ModelError) -> None:
    """Raise unless every weight of the adapter belongs to a block of the model, but for blocks that are not loaded."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    taken = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    loaded = model.config.get_text_config().num_hidden_layers
    with safe_open(str(folder / "adapter_model.safetensors"), framework="numpy") as file:
        left = [name for name in file.keys() if name not in taken]  # noqa: SIM118  (it is no mapping)
    strange = [name for name in left if not _beyond(name, loaded)]
    if strange:
        raise other


def _beyond(name: str, loaded: int) -> bool:
    return any(part.isdecimal() and int(part) >= loaded for part in name.split("."))


def _digestible(model: PreTrainedModel) -> dict[str, float]:
    """A number for each weight that changes when the weight does."""
    return {name: float(weight.detach().double().abs().sum()) for name, weight in model.named_parameters()}
