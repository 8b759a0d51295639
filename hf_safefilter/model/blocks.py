"""Where the blocks of a transformer are, in any architecture: found by shape, not by a list of model names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_safefilter.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "final_norm", "ln_f", "norm_f")


@dataclass(frozen=True, slots=True)
class Stack:
    """The blocks of a model and what follows them.

    Attributes:
        name: dotted path of the list of blocks inside the model.
        blocks: the modules 0..L-1; the output of block b is layer b+1.
        final_norm: the norm after the last block; None for post-norm stacks such as BERT, which end without one.
        causal: whether every token sees the tokens before it alone, so that padding on the right changes nothing.
    """

    name: str
    blocks: nn.ModuleList
    final_norm: nn.Module | None
    causal: bool


def find_blocks(model: nn.Module) -> Stack:
    """The list of `config.num_hidden_layers` blocks nearest to the root of `model`.

    Raises:
        ModelError: none, or the model has an encoder and a decoder.
    """
    from torch import nn

    if not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} is no transformers model", fix="pass one, e.g. an AutoModel")
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} has an encoder and a decoder", fix="use a decoder-only or encoder-only model"
        )
    wanted = getattr(config, "num_hidden_layers", 0)
    lists = [
        name for name, child in model.named_modules() if isinstance(child, nn.ModuleList) and len(child) == wanted > 0
    ]
    if not lists:
        raise ModelError(
            f"no list of {wanted} blocks was found in {type(model).__name__}",
            fix="models that share one block's weights or keep blocks elsewhere cannot be read",
        )
    name = min(lists, key=lambda path: path.count("."))
    parent = model.get_submodule(name.rpartition(".")[0])
    norms = [getattr(parent, norm, None) for norm in _FINAL_NORMS]
    blocks = model.get_submodule(name)
    looks_back = {module.is_causal for module in blocks.modules() if hasattr(module, "is_causal")}
    return Stack(name, blocks, next((norm for norm in norms if norm is not None), None), looks_back == {True})
