"""Operations and bytes of reading a row, counted on a model without memory for its weights.

The model is built from its configuration on torch's "meta" device, where tensors have shapes and no memory. Every
matrix in a block is multiplied with every token once: 2 operations for each weight. Attention multiplies every pair of
tokens twice (scores, mixture). Norms, activations and rotations are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model.config_rules import ruled
from hf_safefilter.model.source import ModelKey, base_and_adapter, explained, gguf_file, local_folder, repository
from hf_safefilter.model.tokenizer_rules import require_modest_tokenizer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PLACE = 12 + 1 / 8
"""Bytes of a span's place: turn, first token, one past the last, and a bit."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one row takes, as a function of its tokens.

    Attributes:
        blocks: Number of blocks that must run.
        n_blocks: Number of blocks in the whole model.
        hidden_size: Width of a vector.
        layers: Number of vectors that a span has: layers times positions.
        per_token: Weights multiplied with every token, in all blocks that run.
        per_row: Weights multiplied with the read position alone, in the deepest block.
        per_pair: Operations for each pair of tokens, in all blocks where every token attends.
        per_read: Operations for each token that the read position alone attends to, in the deepest block.
        weights: Number of loaded parameters: embedding, blocks, norm.
        stored_bytes: Bytes of one parameter on disk.
    """

    blocks: int
    n_blocks: int
    hidden_size: int
    layers: int
    per_token: int
    per_row: int
    per_pair: int
    per_read: int
    weights: int
    stored_bytes: int

    def flops(self, tokens: float, squared: float) -> float:
        """Operations for a row of `tokens` tokens, with `squared` = `tokens`² (or means of both, for the mean row)."""
        return 2 * self.per_token * tokens + 2 * self.per_row + self.per_pair * squared + self.per_read * tokens

    def column_bytes(self, spans: float = 1) -> float:
        """Bytes that a row of so many spans adds to a data set.

        A span has its vectors and its place (12 1/8); a row has row_id (32 + 4), unscorable (4), truncated (1/8),
        read_as (16 + 4), and an offset (4) in `spans` and in each column of vectors.
        """
        return spans * (self.layers * 2 * self.hidden_size + PLACE) + 36 + 4 + 1 / 8 + 20 + 4 * (1 + self.layers)

    def cache_bytes(self, spans: float = 1) -> float:
        """Bytes of a row in the row cache: for each layer what `column_bytes` counts, and an id of 16 bytes."""
        return self.layers * (spans * (2 * self.hidden_size + PLACE) + 16 + 4 + 1 / 8 + 8)


def read_config(model: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a Hub id, a local folder, or "toy"."""
    return ruled(pretrained("AutoConfig", model, revision), model)


def pretrained(auto: str, model: str, revision: str | None) -> Any:
    """A configuration or a tokenizer; a local folder is not hashed for it, as nothing is computed with the weights."""
    import transformers

    base, _ = base_and_adapter(model)
    folder, file = local_folder(base), gguf_file(base)
    options = {"revision": base_and_adapter(revision or "")[0] or None} if folder is None else {}
    options |= {"gguf_file": file} if file else {}
    if auto == "AutoTokenizer":
        require_modest_tokenizer(ModelKey(model, revision or "main", ""))
    with explained(model, revision):
        source = str(folder or repository(base))
        return getattr(transformers, auto).from_pretrained(source, **options, trust_remote_code=False)


def count_work(config: PreTrainedConfig, layers: Sequence[Layer], position: str = "last") -> Work:
    """Count what reading `layers` takes.

    Args:
        config: Configuration of the model.
        layers: See `EmbedLayers`.
        position: See `EmbedLayers`; a mean needs the deepest block at every token.

    Raises:
        OptionError: The model does not have one of the layers, or the position is not known.
        ModelError: The blocks of this architecture are not found.
    """
    import torch
    import transformers

    from hf_safefilter.model.blocks import find_blocks
    from hf_safefilter.model.last_block import can_read_positions
    from hf_safefilter.model.load import depth_for
    from hf_safefilter.model.reading_options import MEAN, positions_in, tokens_of_first

    positions = positions_in(position)
    text = config.get_text_config()
    depth = depth_for(text.num_hidden_layers, tuple(layers))
    with torch.device("meta"), explained(type(config).__name__):
        model = transformers.AutoModel.from_config(text)  # type: ignore[no-untyped-call]
    stack = find_blocks(model)
    blocks = list(stack.blocks[:depth])
    weights = [sum(_multiplied(block, text).values()) for block in blocks]
    pair = 2 * _attention_width(text)
    per_row = per_read = 0
    averaged = any(name == MEAN or tokens_of_first(name) for name in positions)
    if blocks and not averaged and can_read_positions(blocks[-1]):
        matrices = _multiplied(blocks[-1], text)
        keys_and_values = sum(n for name, n in matrices.items() if name.endswith(("k_proj.weight", "v_proj.weight")))
        per_row, weights[-1], per_read = weights[-1] - keys_and_values, keys_and_values, pair
    unused = sum(p.numel() for block in stack.blocks[depth:] for p in block.parameters())
    return Work(
        blocks=depth,
        n_blocks=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        layers=len(layers) * len(positions),
        per_token=sum(weights),
        per_row=per_row,
        per_pair=pair * (depth - bool(per_read)),
        per_read=per_read,
        weights=sum(p.numel() for p in model.parameters()) - unused,
        stored_bytes=BYTES.get(str(getattr(text, "dtype", None)).removeprefix("torch."), 4),
    )


def _multiplied(block: nn.Module, config: PreTrainedConfig) -> dict[str, int]:
    """Number of weights in each matrix that a token is multiplied with; of experts, only those a token is sent to."""
    from torch import nn

    tables = {id(module.weight) for module in block.modules() if isinstance(module, nn.Embedding)}
    counts = {}
    for name, weight in block.named_parameters():
        if weight.ndim < 2 or id(weight) in tables:
            continue
        counts[name] = weight.numel()
        if weight.ndim == 3 or ".experts." in f".{name}":
            counts[name] = int(weight.numel() * _share_of_experts(config))
    return counts


def _share_of_experts(config: PreTrainedConfig) -> float:
    used = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if not used or not experts:
        raise ModelError(
            f"{type(config).__name__} does not state how many experts a token is sent to",
            fix="embed a small part of the rows and measure the time",
        )
    return used / experts


def _attention_width(config: PreTrainedConfig) -> int:
    """Multiplications for a pair of tokens: the width of all heads, once for the scores and once for the mixture."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    query = (_first(config, "qk_nope_head_dim") or 0) + (_first(config, "qk_rope_head_dim") or 0)
    return heads * ((query or width) + (_first(config, "v_head_dim") or width))


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
