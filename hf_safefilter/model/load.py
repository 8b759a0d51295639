"""Models, tokenizers and configurations, loaded once a process and never held by a step.

Only the blocks up to the deepest layer asked for are built and read from disk, without a language-model head, from
safetensors alone, and never with code that a repository brings along.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.model.blocks import Stack, find_blocks
from hf_safefilter.model.reading_options import ATTENTIONS
from hf_safefilter.model.source import (
    CONVERT,
    ModelKey,
    explained,
    local_folder,
    location,
    quiet_load_report,
    resolve_revision,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DTYPES",
    "ModelKey",
    "Trunk",
    "causal_lm",
    "depth_for",
    "fresh_causal_lm",
    "max_tokens",
    "model_config",
    "pick_attn",
    "pick_device",
    "pick_dtype",
    "resolve_revision",
    "sequence_classifier",
    "settle_threads",
    "tokenizer",
    "trunk",
]

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
_HELD = 2  # models kept at once in a process: one that is read, one to compare with
_trunks: OrderedDict[tuple[ModelKey, str, bool, str], Trunk] = OrderedDict()
_forked_with_torch = False


@dataclass(slots=True)
class Trunk:
    """The lower part of a model: embedding, the first `depth` blocks, and the final norm if all blocks are there.

    Attributes:
        model: the transformers model without a head, in eval mode.
        stack: where its blocks are.
        depth: number of blocks loaded.
        n_blocks: L, the number of blocks the whole model has.
        hidden_size: width of the states between blocks.
        device: where it lies.
        token_budget: the most tokens a batch may hold that has not run out of memory; None as long as all have fitted.
        packs: whether it was found to read packed rows right; None as long as nobody asked.
        busy: held while rows are read, as hooks and the choice of attention are the whole model's.
    """

    model: PreTrainedModel
    stack: Stack
    depth: int
    n_blocks: int
    hidden_size: int
    device: torch.device
    token_budget: int | None = None
    packs: bool | None = None
    busy: threading.RLock = field(default_factory=threading.RLock)


def trunk(key: ModelKey, depth: int, device: torch.device, *, plain: bool = False, attn: str = "auto") -> Trunk:
    """The first `depth` blocks of a model on `device`, from this process's table or from disk.

    A deeper trunk already held serves as well: a forward stops where the deepest wanted layer has been read.

    Args:
        key: the pinned model.
        depth: blocks needed.
        device: where to put it.
        plain: keep transformers' own linear layers, for callers that read or change weights; else they may be replaced
            by faster ones whose weights are out of reach.
        attn: one of `ATTENTIONS`.

    Raises:
        ModelError: the model cannot be loaded whole.
        IntegrityError: a local folder has changed since the key was made.
    """
    from hf_safefilter.model.linears import prepack_if_faster

    settle_threads()
    slot = (key, str(device), plain, attn)
    held = _trunks.get(slot)
    if held is None or held.depth < depth:
        _trunks.pop(slot, None)
        while len(_trunks) >= _HELD:
            _trunks.popitem(last=False)
        _trunks[slot] = _load_trunk(key, depth, device, attn)
        if not plain:
            prepack_if_faster(_trunks[slot].model)
    _trunks.move_to_end(slot)
    return _trunks[slot]


def _load_trunk(key: ModelKey, depth: int, device: torch.device, attn: str) -> Trunk:
    whole = model_config(key)
    text = whole.get_text_config()
    n_blocks = text.num_hidden_layers
    config = _cut(text, max(1, depth))
    # A text model inside a multimodal one has the weights of a model of its own, under a longer name.
    renamed = {r"^(model\.)?language_model\.(model\.)?": ""} if text is not whole else None
    named = {"attn_implementation": attn} if attn != "auto" else {}
    model = _load("AutoModel", key, config=config, key_mapping=renamed, **named)
    if hasattr(model, "pooler"):
        model.pooler = None
    stack, packs = find_blocks(model), False if named else None
    return Trunk(model.to(device), stack, config.num_hidden_layers, n_blocks, config.hidden_size, device, packs=packs)


def _cut(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """A copy of `config` with `depth` blocks; lists with one entry a block (layer_types and kin) are cut alike."""
    n_blocks = config.num_hidden_layers
    cut = copy.deepcopy(config)
    cut.use_cache = False
    if depth >= n_blocks:
        return cut
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == n_blocks:
            setattr(cut, name, value[:depth])
    cut.num_hidden_layers = depth
    return cut


def _load(auto: str, key: ModelKey, **options: Any) -> PreTrainedModel:
    import torch
    import transformers

    from hf_safefilter.model.freed_memory import keep_freed_memory

    folder = local_folder(key.model)
    if folder is not None and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{key.model} has no safetensors files", fix=CONVERT)
    with explained(key.model, key.revision), quiet_load_report():
        model, report = getattr(transformers, auto).from_pretrained(
            **location(key),
            **options,
            dtype=getattr(torch, key.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # transformers fills what a file lacks with random numbers; a pooler, which is never run, may be lacking
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise ModelError(
            f"{key.model} lacks {len(missing)} weights of {type(model).__name__}",
            found=f"no {missing[0]} in its files",
            fix="the files are incomplete or of another architecture; fetch the model again",
        )
    # Weights stored as they are computed in stay mapped from the file: whoever saved another model over it would change
    # this one, or end the process. So they are copied, and what was copied is what the key names.
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    location(key)
    keep_freed_memory()
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def causal_lm(key: ModelKey, device: torch.device) -> PreTrainedModel:
    """The whole model with its language-model head, for generation and training-free measurements."""
    return fresh_causal_lm(key, device)


def fresh_causal_lm(key: ModelKey, device: torch.device) -> PreTrainedModel:
    """The same, loaded anew for a caller that will train it: `causal_lm` hands out one model to all."""
    settle_threads()
    return _load("AutoModelForCausalLM", key).to(device)


@lru_cache(maxsize=1)
def sequence_classifier(key: ModelKey, device: torch.device) -> PreTrainedModel:
    """The whole model with its classification head, for guards that are classifiers."""
    settle_threads()
    return _load("AutoModelForSequenceClassification", key).to(device)


@lru_cache(maxsize=8)
def model_config(key: ModelKey) -> PreTrainedConfig:
    """The model's configuration as it stands in its repository. Do not change it: it is shared."""
    from transformers import AutoConfig

    with explained(key.model, key.revision):
        return AutoConfig.from_pretrained(**location(key), trust_remote_code=False)


@lru_cache(maxsize=8)
def tokenizer(key: ModelKey) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    with explained(key.model, key.revision):
        return AutoTokenizer.from_pretrained(**location(key), trust_remote_code=False)


def max_tokens(key: ModelKey) -> int | None:
    """The longest row the model itself allows, in tokens; None where neither configuration nor tokenizer says."""
    config = model_config(key).get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), tokenizer(key).model_max_length]
    # a tokenizer without a limit says 1e30
    return min((int(limit) for limit in limits if limit is not None and 0 < limit < 1e9), default=None)


def depth_for(n_blocks: int, layers: tuple[Layer, ...]) -> int:
    """Number of blocks that must run for `layers` to be read.

    Raises:
        OptionError: no layers, one twice, or one out of range.
    """
    if not layers or len(set(layers)) != len(layers):
        raise OptionError(f"layers={list(layers)} names no layer, or one twice", fix="pass e.g. layers=[12]")
    for layer in layers:
        if layer != "norm" and not (type(layer) is int and 0 <= layer <= n_blocks):
            raise OptionError(
                f"layer {layer!r} is not in this model",
                found=f"{n_blocks} blocks, so layers 0 (embedding) to {n_blocks} (last block's raw output)",
                fix=f"choose from 0 to {n_blocks}, or 'norm' for the state after the final norm",
            )
    return max(n_blocks if layer == "norm" else layer for layer in layers)


def pick_device(device: str | None, rank: int | None) -> torch.device:
    """The device to compute on: the one asked for, else CUDA, else Apple's, else the CPU.

    Args:
        device: None, "cpu", "mps", "cuda" or "cuda:1".
        rank: number of the worker process (`with_rank=True`); worker r gets GPU r modulo the number of GPUs.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device {device!r} is not known", fix="use 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device 'mps' is not available here", fix="use device='cpu', or leave it out")
    if chosen.type != "cuda":
        return chosen
    if torch.cuda._is_in_bad_fork():
        raise ModelError(
            "this worker was forked after CUDA had been used, which CUDA does not survive",
            fix='call multiprocess.set_start_method("spawn", force=True) before map(num_proc=...)',
        )
    count = torch.cuda.device_count()
    if (chosen.index or 0) >= count:
        raise OptionError(f"device {device!r} is not available here", found=f"{count} GPUs", fix="use device='cpu'")
    return chosen if chosen.index is not None else torch.device("cuda", (rank or 0) % count)


def pick_dtype(dtype: str, device: torch.device, checkpoint: torch.dtype | None = None) -> str:
    """The number format to compute in: "auto" is float32, or on CUDA the checkpoint's own 16-bit format."""
    if dtype == "auto":
        stored = str(checkpoint).removeprefix("torch.")
        return stored if device.type == "cuda" and stored in DTYPES else "float32"
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is not known", fix=f"use 'auto' or one of {', '.join(DTYPES)}")
    return dtype


def pick_attn(attn: str, dtype: str, device: torch.device) -> None:
    """Refuse an implementation of attention that is not known, not installed, or not for this device.

    transformers would fetch a missing one from the Hub where it can: code that nobody chose.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_torch_flex_attn_available

    if attn not in ATTENTIONS:
        raise OptionError(f"attn {attn!r} is not known", fix=f"use one of {', '.join(ATTENTIONS)}")
    there = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
        "flex_attention": is_torch_flex_attn_available,
    }
    if attn.startswith("flash") and (device.type != "cuda" or dtype == "float32"):
        raise OptionError(
            f"attn {attn!r} is for GPUs, in 16 bits", found=f"{dtype} on {device.type}", fix="use attn='auto'"
        )
    if attn in there and not there[attn]():
        raise OptionError(f"attn {attn!r} is not installed here", fix="install it, or use attn='auto'")


def _mark_fork() -> None:
    global _forked_with_torch
    _forked_with_torch = "torch" in sys.modules


def settle_threads() -> None:
    """One thread in a forked worker. Every loader calls it; so does whoever uses a model that was loaded before."""
    # OpenMP's threads do not survive a fork: a child that inherits a used pool waits for them for ever. One thread
    # needs no pool. (datasets forks its workers; spawned ones keep all their threads.)
    global _forked_with_torch
    if not _forked_with_torch:
        return
    import torch

    torch.set_num_threads(1)
    _forked_with_torch = False
    logger.warning(
        "this worker was forked, so it computes with one thread; "
        'multiprocess.set_start_method("spawn", force=True) before map(num_proc=...) gives each worker more'
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_fork)
