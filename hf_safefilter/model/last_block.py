"""The deepest block, computed only where it is read: one token a row needs one query, one output and one MLP.

Keys and values are still those of every token. This is arithmetic of the Llama family alone; other blocks run whole.
"""

from __future__ import annotations

import torch
from torch import nn

_FAMILY = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


def can_read_one_position(block: nn.Module) -> bool:
    """Whether `at_one_position` knows this kind of block (by its exact class: a variant may compute otherwise)."""
    kind = type(block)
    return kind.__name__ in _FAMILY and kind.__module__.startswith("transformers.models.")


def at_one_position(
    block: nn.Module, states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], positions: torch.Tensor
) -> torch.Tensor:
    """Output of a Llama-type block at one position a row.

    Args:
        block: pre-norm, causal, rotary attention and gated MLP.
        states: its input `(n, tokens, d)`, padded on the right.
        rotary: cosines and sines `(1 or n, tokens, head_dim)`, as the model hands them to its blocks.
        positions: the position read in each row, int64 `(n,)`.

    Returns:
        `(n, d)`, in the dtype of `states`.
    """
    attention = block.self_attn
    rows = torch.arange(len(states), device=states.device)
    normed = block.input_layernorm(states)
    here = states[rows, positions]

    def heads(projected: torch.Tensor, norm: str) -> torch.Tensor:
        split = projected.unflatten(-1, (-1, attention.head_dim))
        return getattr(attention, norm)(split) if hasattr(attention, norm) else split

    cosines, sines = (values.expand(len(states), -1, -1).unsqueeze(2) for values in rotary)
    keys = turned(heads(attention.k_proj(normed), "k_norm"), cosines, sines)
    values = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
    query = heads(attention.q_proj(normed[rows, positions]), "q_norm")
    query = turned(query, cosines[rows, positions], sines[rows, positions])

    distance = positions[:, None] - torch.arange(states.shape[1], device=states.device)
    seen = distance >= 0
    if (window := window_of(attention)) is not None:
        seen &= distance < window
    mixed = nn.functional.scaled_dot_product_attention(
        query.unsqueeze(2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=seen[:, None, None],
        scale=attention.scaling,
        enable_gqa=query.shape[1] != keys.shape[2],
    )
    here = here + attention.o_proj(mixed.flatten(1))
    return here + block.mlp(block.post_attention_layernorm(here))


def turned(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: the two halves of a head are the parts of complex numbers turned by an angle."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


def window_of(attention: nn.Module) -> int | None:
    """How far back a token sees; None: to the beginning."""
    if type(attention).__name__ == "MistralAttention":  # the one that keeps it in its configuration only
        return attention.config.sliding_window
    return getattr(attention, "sliding_window", None)
