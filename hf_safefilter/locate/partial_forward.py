"""Forward passes that start or end inside a model, and which models give the same states that way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from hf_safefilter.model.blocks import find_blocks

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import Cache, PreTrainedModel


class StopForward(Exception):
    """Raised by a hook to end a forward pass whose remaining blocks are not needed."""


class CacheLayer(Protocol):
    """Keys and values of one block in a cache, `(n, heads, tokens, width)`."""

    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool


def cache_layers(cache: Cache) -> list[CacheLayer]:
    """The layers of a cache, block by block; their tensors are there once `is_initialized` is true."""
    return cast(list[CacheLayer], cache.layers)  # transformers declares kinds of layers without keys and values too


@contextmanager
def starting_at(blocks: nn.ModuleList, first: int, states: Any) -> Iterator[None]:
    """Inside the block, the forward pass starts with `states` as the output of every block below `first`."""
    if not first:
        yield
        return
    lower = list(blocks[:first])
    originals = [block.__dict__.get("forward") for block in lower]
    for block in lower:
        block.forward = lambda *args, **kwargs: states
    try:
        yield
    finally:
        for block, original in zip(lower, originals, strict=True):
            if original is None:
                del block.forward
            else:
                block.forward = original


def caches_all_tokens(model: PreTrainedModel, length: int) -> bool:
    """Whether every block has its own keys and values and attends to all tokens of a text of `length` tokens.

    Rejected drafts leave gaps in the cache, which a sliding window would count as distance.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    config = model.config.get_text_config()
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return False
        if isinstance(layer, DynamicSlidingWindowLayer) and length >= layer.sliding_window:
            return False
    return not getattr(config, "num_kv_shared_layers", 0) and find_blocks(model).causal
