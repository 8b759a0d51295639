"""What was loaded is what the files hold: no weight missing, none left over, none read without its scales."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from hf_safefilter.errors import ModelError
from hf_safefilter.model.quantised import ADVICE, is_plain, make_plain

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from hf_safefilter.model.stored_weights import StoredWeight

_SCALES = re.compile(r"scale|zeros|qweight|g_idx|absmax|quant|SCB")  # in the names of what comes with quantised weights
_OF_STATES = re.compile(r"^(input|output|activation|k|v|q|kv_cache|kv)_")  # scales of what flows, not of weights
_BUFFERS = re.compile(r"inv_freq|position_ids|token_type_ids|masked_bias")  # older files keep what is computed anew
_QUANTISED = re.compile(r"F8_|F4|[IU]\d")  # types of numbers, in the words of safetensors
_NUMBERS = re.compile(r"weight|qdata|blocks|proj")


def require_all(
    name: str,
    model: PreTrainedModel,
    report: Mapping[str, Collection[str]],
    stored: Mapping[str, StoredWeight],
    prefix: str,
) -> None:
    """Raise unless the loaded model has all its weights, and all that the files have of its modules.

    Args:
        name: The model, for messages.
        model: As transformers has loaded it, perhaps without its upper blocks or its head.
        report: What transformers says of loading it: "missing_keys", which it has filled with random numbers, and
            "unexpected_keys", which it has not read, under the names that they would have in `model`.
        stored: All weights in the files.
        prefix: What the names of the model's weights begin with in the files, where there are other parts.

    Raises:
        ModelError: A weight is missing, left over, or quantised without scales; or the format is not known.
    """
    elsewhere = {one for one in stored if not one.startswith(prefix)}
    unused = set(report["unexpected_keys"]) - elsewhere
    stored = {one: weight for one, weight in stored.items() if one not in elsewhere}
    lacking = sorted(one for one in report["missing_keys"] if "pooler" not in one)  # a pooler never runs
    if lacking:
        raise ModelError(
            f"{name} lacks {len(lacking)} weights of {type(model).__name__}",
            found=f"no {lacking[0]} in its files",
            fix="download the model again: its files are incomplete or of another architecture",
        )
    left = sorted(_left_over(model, unused))
    if any(_SCALES.search(one.rpartition(".")[2]) for one in left):
        fact = f"{name} has quantised weights, and {len(left)} of their scales would not be read"
        raise ModelError(fact, found=left[0], fix=ADVICE)
    if left:
        raise ModelError(
            f"{name} has {len(left)} weights that {type(model).__name__} would leave unread",
            found=left[0],
            fix="check `model_type` in its config.json, or update transformers: its layers have more than is computed",
        )
    bare = _without_scales(stored)
    if bare:
        raise ModelError(
            f"{name} has quantised weights, and {len(bare)} of them have no scales in its files",
            found=bare[0],
            fix=f"download the model again, or {ADVICE}",
        )
    if isinstance(getattr(model.config, "quantization_config", None), dict):  # else it would be an object, or gone
        raise ModelError(
            f"{name} has weights in a format that transformers does not know",
            found=str(model.config.quantization_config.get("quant_method"))[:80],
            fix=f"update transformers, or {ADVICE}",
        )


def take_over(model: PreTrainedModel, dtype: torch.dtype, *, merging: bool) -> None:
    """Copy the weights out of the files, in `dtype` also where they are plain beside quantised ones.

    Weights stored in the dtype they are computed in stay mapped from the file: saving another model over it would
    change this one, or end the process. Some formats are made plain, and all of them if an adapter will be added.
    """
    kept = getattr(model, "hf_quantizer", None) is not None
    make_plain(model, dtype, merging=merging)
    for weight in model.parameters():
        in_16_bits = is_plain(weight) and weight.element_size() == 2
        weight.data = weight.data.to(dtype, copy=True) if kept and in_16_bits else weight.data.clone()
    for buffer in model.buffers():
        buffer.data = buffer.data.clone()


def _left_over(model: PreTrainedModel, unused: Iterable[str]) -> list[str]:
    """Unread weights of modules that were loaded."""
    modules = {path: module for path, module in model.named_modules() if path}
    prefix = f"{model.base_model_prefix}."  # of files of the model with its head
    found = []
    for key in unused:
        path, _, last = key.rpartition(".")
        module = modules.get(path, modules.get(path.removeprefix(prefix)))
        if module is None or _BUFFERS.search(last) or _OF_STATES.search(last):
            continue
        # older files have a mask called "bias" in the module around the projections of attention
        if _SCALES.search(last) or _computes(module):
            found.append(key)
    return found


def _computes(module: nn.Module) -> bool:
    return not list(module.children()) or bool(list(module.parameters(recurse=False)))


def _without_scales(stored: Mapping[str, StoredWeight]) -> list[str]:
    """Weights of a quantised type whose module has no scale of weights."""
    beside: defaultdict[str, list[str]] = defaultdict(list)
    for name in stored:
        path, last = _module_and_last(name)
        beside[path].append(last)
    found = []
    for name, weight in stored.items():
        path, last = _module_and_last(name)
        if _QUANTISED.match(weight.dtype) and _NUMBERS.search(last) and not _SCALES.search(last.replace("qweight", "")):
            if not _has_scales(beside[path]):
                found.append(name)
    return sorted(found)


def _has_scales(names: Collection[str]) -> bool:
    return any(re.search(r"scale|absmax|SCB", name) and not _OF_STATES.search(name) for name in names)


def _module_and_last(name: str) -> tuple[str, str]:
    """bitsandbytes has ``q_proj.weight.absmax`` beside ``q_proj.weight``."""
    path, _, last = name.rpartition(".")
    return (path.removesuffix(".weight"), last) if path.endswith(".weight") else (path, last)
