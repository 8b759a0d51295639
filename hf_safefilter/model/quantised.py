"""Quantised weights: which formats are read, how, what they are called, and none by code from the Hub."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.errors import ModelError
from hf_safefilter.model.source import base_and_adapter, gguf_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_READ_AS_PLAIN = ("fp8", "mxfp4", "mxfp8")
"""Formats that are turned into plain numbers, because transformers computes with them in code from the Hub alone."""

_NEED_KERNELS = ("eetq", "fbgemm_fp8", "metal", "nvfp4")
"""Formats that transformers computes with code which the package kernels fetches from the Hub."""

_EXCEPTIONS = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore")
"""Where formats list the modules that are not quantised."""

ADVICE = "use the model in float32, bfloat16 or float16"


def carry_to_text(config: PreTrainedConfig) -> None:
    """What a multimodal configuration says of quantised weights holds for its text model too, which is read alone."""
    text, stated = config.get_text_config(), getattr(config, "quantization_config", None)
    if text is not config and stated is not None and getattr(text, "quantization_config", None) is None:
        text.quantization_config = copy.deepcopy(stated)


def keep_code_out(config: PreTrainedConfig, name: str) -> None:
    """Change a configuration so that its format of weights brings no code, and becomes plain numbers where it can.

    Raises:
        ModelError: The format is computed by code from the Hub alone, and the package kernels would fetch it.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return
    method = _method(stated)
    if method in _NEED_KERNELS and find_spec("kernels") is not None:
        raise ModelError(
            f"{name} has weights in the format {method}, which is computed by code from the Hub",
            fix=f"{ADVICE}: no code is fetched for a model",
        )
    if isinstance(stated, dict) and (method in _READ_AS_PLAIN or _is_uniform(stated)):
        stated["dequantize"] = True


def _is_uniform(stated: Mapping[str, Any]) -> bool:
    """Whether all layers have one format of compressed-tensors: transformers dequantises all by the first of several.

    Left as they are, its layers would be made plain at their first pass.
    """
    groups = stated.get("config_groups")
    if _method(stated) != "compressed-tensors" or not isinstance(groups, Mapping):
        return False
    formats = [(group.get("weights"), group.get("format")) for group in groups.values() if isinstance(group, Mapping)]
    return len(formats) == len(groups) > 0 and all(one == formats[0] for one in formats)


def is_kept(config: PreTrainedConfig) -> bool:
    """Whether the weights stay quantised in memory."""
    stated = getattr(config, "quantization_config", None)
    if not isinstance(stated, Mapping):
        return stated is not None
    return not (stated.get("dequantize") or _rounds_states(stated))


def needs_head(config: PreTrainedConfig) -> bool:
    """Whether modules must be named as in the model with its head: what is quantised is told by such names."""
    stated = getattr(config, "quantization_config", None)
    named = isinstance(stated, Mapping) and not stated.get("dequantize")
    return named and str((config.architectures or [""])[0]).endswith("ForCausalLM")


def make_plain(model: PreTrainedModel, dtype: torch.dtype, *, merging: bool) -> None:
    """Turn weights into plain numbers, in place, where their format would make a row depend on those beside it.

    Such formats round what flows through a layer by the largest value in a batch; their weights are the same.

    Args:
        model: As transformers has loaded it.
        dtype: Of the plain numbers.
        merging: Whether an adapter will be added: the sum would be rounded once more.

    Raises:
        ModelError: An adapter will be added, and transformers cannot make weights of this format plain.
    """
    from torch import nn

    stated = getattr(model.config, "quantization_config", None)
    if stated is None or not (merging or _rounds_states(stated.to_dict())):
        return
    method, quantiser = _method(stated), cast("Any", model.hf_quantizer)
    if method != "torchao":
        try:
            quantiser.dequantize(model, dtype=dtype)
        except NotImplementedError as error:
            raise ModelError(
                f"an adapter cannot be merged into weights in the format {method}",
                fix="name its base model in float32, bfloat16 or float16",
            ) from error
        return
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not is_plain(weight):
                plain = cast("Any", weight).dequantize().to(dtype)
                setattr(module, name, nn.Parameter(plain, requires_grad=False))
    quantiser.remove_quantization_config(model)


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is one number for each entry, and no packed or scaled form of them."""
    import torch

    return type(weight.data) is torch.Tensor and weight.is_floating_point()


def require_gradient(model: PreTrainedModel, weights: Iterable[torch.Tensor], fix: str) -> None:
    """Raise unless these weights of the model can be trained.

    Raises:
        ModelError: They are quantised; `fix` says what to do.
    """
    if is_kept(model.config) or not all(map(is_plain, weights)):
        raise ModelError("the weights are quantised and have no gradient", fix=f"{fix}, or {ADVICE}")


def _rounds_states(stated: Mapping[str, Any]) -> bool:
    method = _method(stated)
    return method == "torchao" or (method == "bitsandbytes" and bool(stated.get("load_in_8bit")))


def strip_exceptions(config: PreTrainedConfig, prefix: str) -> None:
    """Name the modules that are not quantised as the text model alone has them: without `prefix`."""
    stated = getattr(config, "quantization_config", None)
    if not isinstance(stated, dict):
        return
    for key in _EXCEPTIONS:
        if isinstance(stated.get(key), list):
            stated[key] = [name.removeprefix(prefix) if isinstance(name, str) else name for name in stated[key]]


def weights_format(model: str, config: PreTrainedConfig) -> str | None:
    """How the weights of a model are stored and read, in a few words for people; None if they are plain numbers.

    For example "fp8, dequantised", "bitsandbytes nf4", "gptq 4-bit", "torchao Int8WeightOnlyConfig".
    """
    base, adapter = base_and_adapter(model)
    if gguf_file(base):
        return "gguf, dequantised"
    stated = getattr(config, "quantization_config", None)
    if not isinstance(stated, Mapping):
        return None
    method = _method(stated)
    if method == "bitsandbytes":
        detail = stated.get("bnb_4bit_quant_type", "fp4") if stated.get("load_in_4bit") else "int8"
    elif method == "torchao":
        detail = _torchao_name(stated.get("quant_type"))
    elif method == "compressed-tensors":
        detail = stated.get("format")
    else:
        detail = f"{stated['bits']}-bit" if "bits" in stated else None
    words = f"{method} {detail}" if detail else method
    return words if is_kept(config) and adapter is None else f"{words}, dequantised"


def _torchao_name(stated: object) -> object:
    inner = stated.get("default", stated) if isinstance(stated, Mapping) else stated
    return inner.get("_type") if isinstance(inner, Mapping) else inner


def _method(stated: object) -> str:
    method = stated.get("quant_method") if isinstance(stated, Mapping) else getattr(stated, "quant_method", None)
    return str(getattr(method, "value", method))


def forget_quantisation(model: PreTrainedModel) -> None:
    """A GGUF file's weights are plain numbers once they are read; what says otherwise would be believed later."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
