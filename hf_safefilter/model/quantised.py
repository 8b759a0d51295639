"""Quantised weights: which formats are read, and that none is read without its scales, or by code from the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hf_safefilter.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_SCALES = re.compile(r"scale|zeros|qweight|g_idx|absmax|quant")  # in the names of what comes with quantised weights

_READ_AS_PLAIN = ("fp8", "mxfp4")
"""Formats that are turned into plain numbers, so that they need no code from the Hub."""

_NEED_KERNELS = ("eetq", "fbgemm_fp8", "metal", "nvfp4")
"""Formats that transformers computes with code which the package kernels fetches from the Hub."""

_ADVICE = "use the model in float32, bfloat16 or float16"


def keep_code_out(config: PreTrainedConfig, name: str) -> None:
    """Change a configuration so that its format of weights brings no code; without the package kernels none can come.

    Raises:
        ModelError: The format is computed by such code alone.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None or find_spec("kernels") is None:
        return
    method = stated.get("quant_method") if isinstance(stated, Mapping) else getattr(stated, "quant_method", None)
    method = str(getattr(method, "value", method))
    if method in _NEED_KERNELS:
        raise ModelError(
            f"{name} has weights in the format {method}, which is computed by code from the Hub",
            fix=f"{_ADVICE}: no code is fetched for a model",
        )
    if method in _READ_AS_PLAIN and isinstance(stated, dict):
        stated["dequantize"] = True


def refuse_lost_scales(name: str, model: PreTrainedModel, unused: Iterable[str]) -> None:
    """Raise if scales of weights that were loaded are left over: without them quantised weights mean nothing."""
    loaded = {module for module, _ in model.named_modules()} - {""}
    prefix = f"{model.base_model_prefix}."  # of files of the model with its head
    split = ((key, *key.removeprefix(prefix).rpartition(".")[::2]) for key in unused)
    lost = sorted(key for key, module, last in split if module in loaded and _SCALES.search(last))
    if lost:
        fact = f"{name} has quantised weights, and {len(lost)} of their scales would not be read"
        raise ModelError(fact, found=lost[0], fix=_ADVICE)


def forget_quantisation(model: PreTrainedModel) -> None:
    """A GGUF file's weights are plain numbers once they are read; what says otherwise would be believed later."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
