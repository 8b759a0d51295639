"""Where the blocks of a transformer are, in any architecture: found by shape, not by a list of model names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from hf_safefilter.errors import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

_FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "final_norm", "ln_f", "norm_f")


@dataclass(frozen=True, slots=True)
class Stack:
    """The blocks of a model and what follows them.

    Attributes:
        name: Dotted path of the list of blocks inside the model.
        blocks: The modules 0..L-1; the output of block b is layer b+1.
        final_norm: The norm after the last block; None for post-norm stacks such as BERT, which end without one.
        causal: Whether every token sees only the tokens before it, so that padding on the right changes nothing.
    """

    name: str
    blocks: nn.ModuleList
    final_norm: nn.Module | None
    causal: bool


def find_blocks(model: nn.Module) -> Stack:
    """The list of `config.num_hidden_layers` blocks nearest to the root of `model`.

    Raises:
        ModelError: There is no such list, or the model has an encoder and a decoder.
    """
    from torch import nn

    if not hasattr(model, "config"):
        raise ModelError(
            f"{type(model).__name__} is not a transformers model", fix="pass one, for example an AutoModel"
        )
    config = cast("PreTrainedConfig", model.config).get_text_config()  # torch types unknown attributes as modules
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} has an encoder and a decoder", fix="use a decoder-only or encoder-only model"
        )
    count = getattr(config, "num_hidden_layers", 0)
    lists = {
        name: child
        for name, child in model.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == count > 0
    }
    if not lists:
        raise ModelError(
            f"no list of {count} blocks was found in {type(model).__name__}",
            fix="use another model: those that share one block's weights or keep blocks elsewhere cannot be read",
        )
    name = min(lists, key=lambda path: path.count("."))
    blocks, parent = lists[name], model.get_submodule(name.rpartition(".")[0])
    norms = [getattr(parent, norm, None) for norm in _FINAL_NORMS]
    causal = {module.is_causal for module in blocks.modules() if hasattr(module, "is_causal")}
    return Stack(name, blocks, next((norm for norm in norms if norm is not None), None), causal == {True})
