"""Adapters: merged by PEFT into the weights of a model in memory; nothing is written."""

from __future__ import annotations

import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.checks import is_whole
from hf_safefilter.errors import MissingError, ModelError
from hf_safefilter.storage.paths import is_there

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_CHOOSES_CODE = ("megatron_config", "layer_replication")
"""Keys of an adapter's configuration by which PEFT imports a module that is named there, or builds blocks anew."""

_LARGEST_RANK = 1 << 16


def merged(model: PreTrainedModel, folder: Path, name: str, base: str, blocks: int) -> PreTrainedModel:
    """The model with the weights of the adapter in `folder` added to its own.

    Args:
        model: A causal language model, perhaps without its upper blocks.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT saves them.
        name: What the adapter is called, for messages.
        base: What the model is called. A warning says so if the adapter names another one of the Hub.
        blocks: Number of blocks of the whole model.

    Raises:
        MissingError: PEFT is not installed.
        ModelError: The adapter is of a kind that cannot be merged, or it belongs to another base: its weights have
            other shapes or names, or there are fewer or more of them than its configuration has in this model.
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
    _warn_of_other_base(config, name, base)
    before = _digestible(model)
    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        _require_own_weights(wrapped, folder, model, blocks, other)
        whole = cast("PreTrainedModel", wrapped.merge_and_unload())
    except ModelError:
        raise
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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{name} is not an adapter as PEFT saves it", fix="save it again") from error
    if kind not in ("LORA", "IA3", "LOHA", "LOKR", "BOFT", "OFT", "HRA", "FOURIERFT", "RANDLORA", "DELORA"):
        raise ModelError(
            f"an adapter of the type {kind} cannot be merged into weights", found=name, fix="use a LoRA adapter"
        )
    if any(config.get(key) for key in _CHOOSES_CODE):
        raise ModelError(
            f"the adapter {name} names code to import, or blocks to repeat",
            found=", ".join(_CHOOSES_CODE),
            fix="use an adapter that only adds weights",
        )
    rank = config.get("r")
    if rank is not None and not (is_whole(rank) and 0 <= rank <= _LARGEST_RANK):
        raise ModelError(f"the adapter {name} has the rank {str(rank)[:40]}", fix="use an adapter as PEFT saves it")
    return cast("dict[str, Any]", config)


def _warn_of_other_base(config: dict[str, Any], name: str, base: str) -> None:
    """Models of one family have weights of one shape, so an adapter for another one of them would fit."""
    named = str(config.get("base_model_name_or_path") or "")
    ids = [text for text in (named, base) if _HUB_ID.fullmatch(text) and not is_there(text)]
    if len(ids) == 2 and named.casefold() != base.casefold():
        logger.warning("the adapter %s names %s as its base, and is merged into %s", name, named, base)


def _require_own_weights(wrapped: Any, folder: Path, model: PreTrainedModel, blocks: int, other: ModelError) -> None:
    """Raise unless the adapter has just the weights that it has in this model, but for blocks that are not loaded."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    taken = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    loaded = model.config.get_text_config().num_hidden_layers
    with safe_open(str(folder / "adapter_model.safetensors"), framework="numpy") as file:
        stored = set(file.keys())
    if any(not _is_above(name, loaded, blocks) for name in stored - taken):
        raise other
    if missing := sorted(taken - stored):  # PEFT would fill them with zeros, and these blocks would be the base's own
        raise ModelError(
            f"{other.fact}, or its file is incomplete: {len(missing)} of its weights are missing",
            found=f"no {missing[0]}; {other.found}",
            fix=f"{other.fix}; or save the adapter again",
        )


def _is_above(name: str, loaded: int, blocks: int) -> bool:
    """Whether a weight belongs to a block of the model that is not loaded."""
    return any(part.isdecimal() and loaded <= int(part) < blocks for part in name.split("."))


def _digestible(model: PreTrainedModel) -> dict[str, float]:
    """A number for each weight that changes when the weight does."""
    return {name: float(weight.detach().double().abs().sum()) for name, weight in model.named_parameters()}
