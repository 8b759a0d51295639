"""The deepest block, computed only where it is read: a token that is not read needs no query, no output and no MLP.

Keys and values are still those of every token. This is arithmetic of the Llama family alone; other blocks run whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hf_safefilter.model.attention import Packed, attend, on

_FAMILY = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


def can_read_positions(block: nn.Module) -> bool:
    """Whether `at_positions` knows this kind of block (by its exact class: a variant may compute otherwise)."""
    kind = type(block)
    return kind.__name__ in _FAMILY and kind.__module__.startswith("transformers.models.")


def at_positions(
    block: nn.Module,
    states: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    rows: Packed,
    places: np.ndarray,
    mean: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Output of a Llama-type block at some places of packed rows, or means of it.

    The last product of the block is linear: of a mean of outputs it is taken once, after the mean.

    Args:
        block: pre-norm, causal, rotary attention and gated MLP.
        states: its input `(tokens, d)`.
        rotary: cosines and sines `(1, tokens, channels)`, as the model hands them to its blocks.
        rows: which tokens belong together.
        places: sorted, int64 `(n,)`.
        mean: Averages `(n, ...)` to `(reads, ...)` in float32; None for the outputs themselves.

    Returns:
        `(n, d)` in the dtype of `states`, or float32 `(reads, d)`.
    """
    layer = cast(Any, block)  # torch types the submodules of a module as tensors or modules
    attention = layer.self_attn
    normed = layer.input_layernorm(states)
    asked = on(states.device, places)

    def heads(projected: torch.Tensor, norm: str) -> torch.Tensor:
        split = torch.unflatten(projected, -1, (-1, attention.head_dim))
        return getattr(attention, norm)(split) if hasattr(attention, norm) else split

    cosines, sines = (values[0].unsqueeze(1) for values in rotary)
    keys = _turned(heads(attention.k_proj(normed), "k_norm"), cosines, sines)
    values = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
    queries = _turned(heads(attention.q_proj(normed[asked]), "q_norm"), cosines[asked], sines[asked])
    mixed = attend(queries, keys, values, rows, attention.scaling, places)
    here: torch.Tensor = states[asked] + attention.o_proj(mixed.flatten(1))
    normed, mlp = layer.post_attention_layernorm(here), layer.mlp
    if mean is None:
        return here + cast("torch.Tensor", mlp(normed))
    inner = mlp.act_fn(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed))
    return mean(here) + mlp.down_proj(mean(inner).to(inner.dtype)).float()


def _turned(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: the two halves of a head are the parts of complex numbers turned by an angle."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines
