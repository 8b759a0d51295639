"""Models, tokenizers and configurations, loaded once per process and never held by a step.

Only the blocks up to the deepest requested layer are built and read from disk, without a language-model head, only from
safetensors, and never with code from the model's repository.
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
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.checks import is_finite, is_whole
from hf_safefilter.columns import Layer
from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model import vllm_engine
from hf_safefilter.model.adapter import merged
from hf_safefilter.model.blocks import Stack, find_blocks
from hf_safefilter.model.config_rules import cut_to, no_fetched_code, ruled
from hf_safefilter.model.fits import Placement, place
from hf_safefilter.model.left_out import LeftOut, blocks_left_out
from hf_safefilter.model.loaded_weights import require_all, take_over
from hf_safefilter.model.model_files import INDEX, require_plain_names
from hf_safefilter.model.picks import DTYPES, pick_attn, pick_backend, pick_device, pick_dtype, spare_gpus
from hf_safefilter.model.quantised import forget_quantisation, needs_head, strip_exceptions
from hf_safefilter.model.reading_options import StreamBlocks
from hf_safefilter.model.source import (
    ADAPTER,
    CONVERT,
    ModelKey,
    adapter_folder,
    base_and_adapter,
    beside_adapter,
    explained,
    file_on_hub,
    gguf_file,
    local_folder,
    location,
    quiet_load_report,
    resolve_revision,
    unchanged,
)
from hf_safefilter.model.spread import spread
from hf_safefilter.model.stored_weights import stored_weights
from hf_safefilter.model.text_tower import model_class, renaming, tower_prefix
from hf_safefilter.model.tokenizer_rules import require_modest_tokenizer

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
    "moved",
    "pick_attn",
    "pick_backend",
    "pick_device",
    "pick_dtype",
    "placement",
    "resolve_revision",
    "sequence_classifier",
    "single_thread_after_fork",
    "spare_gpus",
    "tokenizer",
    "trunk",
    "trunk_of",
]

logger = logging.getLogger(__name__)

_HELD = 2  # models kept in a process at the same time: one that is read, and one to compare it with
_trunks: OrderedDict[tuple[ModelKey, str, bool, str, bool], Trunk] = OrderedDict()
_forked_with_torch = False


@dataclass(slots=True)
class Trunk:
    """The lower part of a model: embedding, the first `depth` blocks, and the final norm if all blocks are loaded.

    Attributes:
        model: The transformers model without a head, in eval mode.
        stack: Its blocks and final norm.
        depth: Number of blocks that are loaded.
        n_blocks: L, the number of blocks of the whole model.
        hidden_size: Width of the states between blocks.
        device: Where the weights are, or the first of them.
        beside: Further devices that have some of its blocks.
        token_budget: Largest number of tokens that a batch may hold; None until it was measured or memory ran out.
        packs: Whether it reads packed rows correctly; None until it was tried.
        pads: Whether it reads padded rows correctly; None until it was tried.
        state_bytes: Bytes of what a block hands on for a token; None until it was measured.
        left_out: The weights of its blocks, where they are loaded one block at a time.
        busy: Held while rows are read: hooks and the choice of attention act on the whole model.
    """

    model: PreTrainedModel
    stack: Stack
    depth: int
    n_blocks: int
    hidden_size: int
    device: torch.device
    beside: tuple[torch.device, ...] = ()
    token_budget: int | None = None
    packs: bool | None = None
    pads: bool | None = None
    state_bytes: float | None = None
    left_out: LeftOut | None = None
    busy: threading.RLock = field(default_factory=threading.RLock)


def trunk(
    key: ModelKey,
    depth: int,
    device: torch.device,
    *,
    plain: bool = False,
    attn: str = "auto",
    stream_blocks: StreamBlocks = "never",
    beside: tuple[torch.device, ...] = (),
) -> Trunk:
    """The first `depth` blocks of a model on `device`, from this process's table or from disk.

    A deeper trunk in the table is used as well: a forward pass stops after the deepest requested layer.

    Args:
        key: The pinned model.
        depth: Number of blocks that are needed.
        device: Where to put the weights.
        plain: Keep transformers' own linear layers, for callers that read or change weights; otherwise they may be
            replaced by faster ones whose weights are not accessible.
        attn: One of `ATTENTIONS`.
        stream_blocks: "auto" leaves the weights of the blocks in their files if they do not fit in memory.
        beside: Devices that may take blocks as well if `device` alone does not hold them; with "auto".

    Raises:
        ModelError: The model cannot be loaded, or its files are incomplete.
        IntegrityError: A local folder has changed since the key was made.
    """
    from hf_safefilter.model.freed_memory import give_back
    from hf_safefilter.model.linears import prepack_if_faster

    single_thread_after_fork()
    resident = (key, str(device), plain, attn, False)
    held = _trunks.get(resident)
    where = Placement(streamed=stream_blocks == "always")
    if held is None or held.depth < depth:
        if held is not None:  # its memory is free for the deeper one
            del held
            _trunks.pop(resident)
            give_back(device)
        where = placement(key, depth, (device, *beside), stream_blocks)
    slot = (*resident[:-1], where.streamed)
    existing = _trunks.get(slot)
    if existing is None or existing.depth < depth:
        _trunks.pop(slot, None)
        while len(_trunks) >= _HELD:
            _trunks.popitem(last=False)
        _trunks[slot] = _load_trunk(key, depth, device, attn, where)
        if not plain and not where.streamed:
            prepack_if_faster(_trunks[slot].model)
    _trunks.move_to_end(slot)
    return _trunks[slot]


def let_go(device: torch.device) -> None:
    """Hold no model any more: another program is to have the device."""
    from hf_safefilter.model.freed_memory import give_back

    for held in (_trunks.clear, causal_lm.cache_clear, sequence_classifier.cache_clear):
        held()
    give_back(device)


def streamed(key: ModelKey, depth: int, device: torch.device) -> Trunk:
    """A trunk whose blocks are loaded one at a time, and which is not kept."""
    return _load_trunk(key, depth, device, "auto", Placement(streamed=True))


def _load_trunk(key: ModelKey, depth: int, device: torch.device, attn: str, where: Placement) -> Trunk:
    whole = model_config(key)
    text = whole.get_text_config()
    n_blocks = text.num_hidden_layers
    config = cut_to(text, max(1, depth))
    options: dict[str, Any] = {"attn_implementation": attn} if attn != "auto" else {}
    if text is not whole:  # a text model inside a multimodal one is read alone, under shorter names
        options["prefix"] = tower_prefix(key, config)
        strip_exceptions(config, options["prefix"])
    # An adapter, and a format that keeps weights quantised, name modules as the model with its head does.
    left_out: list[LeftOut] = []
    if where.streamed or where.shares:
        if base_and_adapter(key.model)[1] is not None:
            raise ModelError(
                f"{key.model} cannot be read block by block: an adapter is merged into the whole model",
                fix="merge it first: PeftModel.merge_and_unload(), then save_pretrained",
            )
        with blocks_left_out(key) as left_out:
            model = _load(model_class(config), key, config=config, **options)
    elif base_and_adapter(key.model)[1] is not None or (text is whole and needs_head(config)):
        whole_model = _load("AutoModelForCausalLM", key, config=config, **options)
        model = cast("PreTrainedModel", whole_model.base_model)  # declared as any module
    else:
        model = _load(model_class(config), key, config=config, **options)
    opened = trunk_of(model, n_blocks, device, packs=False if attn != "auto" else None)
    if where.streamed:
        opened.left_out = left_out[0]
    if where.shares:
        spread(left_out[0], where.shares)
        opened.beside = tuple(one for one, count in where.shares if count and one != device)
    return opened


def trunk_of(model: PreTrainedModel, n_blocks: int, device: torch.device, packs: bool | None = None) -> Trunk:
    """A model in memory as one that is read; `n_blocks` are those of the whole, of which it has the first."""
    if hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]  # torch accepts None for a module, its stubs do not
    stack, text = find_blocks(model), model.config.get_text_config()
    if any(weight.device.type == "meta" for weight in model.parameters()):  # blocks are left out, which `to` refuses
        model._apply(lambda held: held if held.device.type == "meta" else held.to(device))  # type: ignore[no-untyped-call]
    else:
        model = moved(model, device)
    return Trunk(model, stack, text.num_hidden_layers, n_blocks, text.hidden_size, device, packs=packs)


@lru_cache(maxsize=32)
def placement(key: ModelKey, depth: int, devices: tuple[torch.device, ...], stream_blocks: StreamBlocks) -> Placement:
    """Where the blocks of a model are: on the first device if it holds them. Decided once a process."""
    base, adapter = base_and_adapter(key.model)
    text = model_config(key).get_text_config()
    held_anyway = adapter is not None or gguf_file(base) or getattr(text, "quantization_config", None) is not None
    if stream_blocks != "auto" or held_anyway:
        return Placement(streamed=stream_blocks == "always")
    folder = local_folder(base)
    files = None if folder is None else sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return place(key.model, cut_to(text, max(1, depth)), key.dtype, devices, files)


def _load(kind: Any, key: ModelKey, *, prefix: str | None = None, **options: Any) -> PreTrainedModel:
    import torch
    import transformers

    from hf_safefilter.model.freed_memory import keep_freed_memory

    vllm_engine.close()
    folder, gguf = local_folder(key.model), gguf_file(base_and_adapter(key.model)[0])
    if gguf is not None and find_spec("gguf") is None:
        raise MissingError("reading a GGUF file needs gguf: not installed", fix="pip install 'hf_safefilter[gguf]'")
    if folder is not None and gguf is None and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{key.model} has no safetensors files", fix=CONVERT)
    if (index := file_on_hub(key, INDEX)) is not None:
        require_plain_names(index)
    if (
        file_on_hub(key, ADAPTER, gguf_too=True) is not None
    ):  # transformers would load the base that it names, of any revision
        raise beside_adapter(key.model)
    options.setdefault("config", copy.deepcopy(model_config(key)))  # transformers would read one that chooses code
    if prefix is not None:
        options["key_mapping"] = renaming(prefix)
    with explained(key.model, key.revision), quiet_load_report(), no_fetched_code():
        loader = getattr(transformers, kind) if isinstance(kind, str) else kind
        model, report = loader.from_pretrained(
            **location(key),
            **options,
            dtype=getattr(torch, key.dtype),
            use_safetensors=gguf is None,
            trust_remote_code=False,
            output_loading_info=True,
        )
    require_all(key.model, model, report, stored_weights(key), prefix or "")
    if gguf is not None:
        forget_quantisation(model)
    adapter = adapter_folder(key)
    take_over(model, getattr(torch, key.dtype), merging=adapter is not None)
    if adapter is not None:
        base, name = base_and_adapter(key.model)
        model = merged(model, adapter, str(name), base, model_config(key).get_text_config().num_hidden_layers)
    location(key)
    keep_freed_memory()
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def causal_lm(key: ModelKey, device: torch.device) -> PreTrainedModel:
    """The whole model with its language-model head, for generation and for measurements without training."""
    return fresh_causal_lm(key, device)


def fresh_causal_lm(key: ModelKey, device: torch.device) -> PreTrainedModel:
    """The same model, loaded again for a caller that will train it: all callers of `causal_lm` share one."""
    single_thread_after_fork()
    return moved(_load("AutoModelForCausalLM", key), device)


@lru_cache(maxsize=1)
def sequence_classifier(key: ModelKey, device: torch.device) -> PreTrainedModel:
    """The whole model with its classification head, for guards that are classifiers."""
    single_thread_after_fork()
    return moved(_load("AutoModelForSequenceClassification", key), device)


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model itself, moved to `device`."""
    return model.to(device)  # type: ignore[arg-type]  # the decorator of transformers' `to` hides its signature


@lru_cache(maxsize=8)
def model_config(key: ModelKey) -> PreTrainedConfig:
    """The model's configuration as stored in its repository, but for what would choose code. Shared: do not change it.

    Raises:
        ModelError: It is damaged, or its sizes make no sense.
    """
    from transformers import AutoConfig

    with explained(key.model, key.revision), unchanged(key) as place:
        return ruled(AutoConfig.from_pretrained(**place, trust_remote_code=False), key.model)


@lru_cache(maxsize=8)
def tokenizer(key: ModelKey) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ModelError: It is damaged, or would make texts many times as long.
    """
    from transformers import AutoTokenizer

    require_modest_tokenizer(key)
    with explained(key.model, key.revision), unchanged(key) as place:
        return AutoTokenizer.from_pretrained(**place, trust_remote_code=False)


def max_tokens(key: ModelKey) -> int | None:
    """The longest row that the model supports, in tokens; None if neither configuration nor tokenizer has a limit."""
    config = model_config(key).get_text_config()
    limits: list[Any] = [getattr(config, "max_position_embeddings", None), tokenizer(key).model_max_length]
    # tokenizers without a limit have 1e30
    return min((int(limit) for limit in limits if is_finite(limit) and 1 <= limit < 1e9), default=None)


def depth_for(n_blocks: int, layers: tuple[Layer, ...]) -> int:
    """Number of blocks that must run so that `layers` can be read.

    Raises:
        OptionError: `layers` is empty, or names a layer twice or one that the model does not have.
    """
    if not layers or len(set(layers)) != len(layers):
        raise OptionError(f"`layers={list(layers)}` names no layer, or one twice", fix="use for example `layers=[12]`")
    for layer in layers:
        # NumPy's integers are refused: a step must keep plain values
        if layer != "norm" and not (isinstance(layer, int) and is_whole(layer) and 0 <= layer <= n_blocks):
            raise OptionError(
                f"layer {layer!r} is not in this model",
                found=f"{n_blocks} blocks, so layers 0 (embedding) to {n_blocks} (last block's raw output)",
                fix=f"choose from 0 to {n_blocks}, or 'norm' for the state after the final norm",
            )
    return max(n_blocks if isinstance(layer, str) else layer for layer in layers)


def _mark_fork() -> None:
    global _forked_with_torch
    _forked_with_torch = "torch" in sys.modules


def single_thread_after_fork() -> None:
    """Compute with one thread in a forked worker. Call it before using a model that may have been loaded earlier."""
    # OpenMP's threads do not survive a fork: a child process that inherits a pool in use waits for them forever. One
    # thread needs no pool. (datasets forks its workers; spawned ones keep all their threads.)
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
