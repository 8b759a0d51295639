"""The model whose gradient is taken, and those of its parameters that count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model import load
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.scores.gradient.parts import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_safefilter.model.source import ModelKey


@dataclass(slots=True, eq=False)
class Tuned:
    """A model and the parameters that count.

    Attributes:
        model: a causal language model in eval mode; outside of this package's calls none of its parameters requires
            a gradient.
        parameters: those that count, by name; tied ones once.
        mask: whether padding must be masked.
    """

    model: PreTrainedModel
    parameters: dict[str, nn.Parameter]
    mask: bool

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.parameters.values())).device


@lru_cache(maxsize=2)
def tuned(key: ModelKey, device: torch.device, parts: Parts) -> Tuned:
    """The pinned model on `device`, and the parameters of `parts`.

    Raises:
        ModelError: the model cannot be loaded.
        OptionError: more blocks than there are, or LoRA targets that do not exist.
        MissingError: adapters without the package that makes them.
    """
    if parts.kind == "lora":
        return choose(with_adapters(load.fresh_causal_lm(key, torch.device("cpu")), parts).to(device), parts)
    return choose(load.causal_lm(key, device), parts)


def choose(model: PreTrainedModel, parts: Parts) -> Tuned:
    """The parameters of `parts` in a model that is there already (for "lora": with its adapters)."""
    stack = find_blocks(model)
    named = dict(model.named_parameters())
    if parts.kind == "last_blocks":
        there = len(stack.blocks)
        if parts.blocks > there:
            raise OptionError(f"blocks={parts.blocks} is more than the model has", found=f"{there} blocks", fix="fewer")
        heads = tuple(f"{stack.name}.{block}." for block in range(there - parts.blocks, there))
        named = {name: one for name, one in named.items() if name.startswith(heads)}
    elif parts.kind == "lora":
        named = {name: one for name, one in named.items() if ".lora_" in name}
    if any(not one.is_floating_point() for one in named.values()):
        raise ModelError(
            "the weights are quantised and have no gradient", fix="use parts='lora', or the model as it was before"
        )
    return Tuned(model, named, mask=not stack.causal)


def with_adapters(model: PreTrainedModel, parts: Parts) -> PreTrainedModel:
    """The model with fresh LoRA adapters, drawn from the seed on the CPU and so the same everywhere; in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingError(
            "LoRA adapters need the package peft", fix="pip install 'hf_safefilter[train]', or use another parts="
        ) from error
    linears = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "." in name
    }
    absent = [target for target in parts.targets if target not in linears]
    if absent or not parts.targets:
        raise OptionError(
            f"LoRA targets {', '.join(absent) or '(none given)'} do not exist in {type(model).__name__}",
            found=", ".join(sorted(linears)),
            fix="name some of these with targets=",
        )
    config = LoraConfig(r=parts.rank, lora_alpha=4 * parts.rank, target_modules=list(parts.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parts.seed)
        made = inject_adapter_in_model(config, model)
    return made.eval().requires_grad_(False)
