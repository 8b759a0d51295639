"""The model whose gradient is taken, and the parameters that it is taken of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.model import load
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.quantised import require_gradient
from hf_safefilter.scores.gradient.parts import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_safefilter.model.source import ModelKey


@dataclass(slots=True, eq=False)
class Tuned:
    """A model and the parameters whose gradient is taken.

    Attributes:
        model: Causal language model in eval mode; outside of this package's calls none of its parameters requires a
            gradient.
        parameters: The chosen parameters by name; tied ones occur once.
        mask: Whether padding must be masked.
    """

    model: PreTrainedModel
    parameters: dict[str, nn.Parameter]
    mask: bool

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.parameters.values())).device


@lru_cache(maxsize=2)
def tuned(key: ModelKey, device: torch.device, parts: Parts) -> Tuned:
    """The pinned model on `device`, and the parameters of `parts`.

    Raises:
        ModelError: The model cannot be loaded.
        OptionError: `parts` has more blocks than the model, or LoRA targets that do not exist.
        MissingError: Adapters are requested, but the package peft is not installed.
    """
    if parts.kind == "lora":
        return choose(load.moved(with_adapters(load.fresh_causal_lm(key, torch.device("cpu")), parts), device), parts)
    return choose(load.causal_lm(key, device), parts)


def choose(model: PreTrainedModel, parts: Parts) -> Tuned:
    """The parameters of `parts` in a loaded model (for "lora": in one that has its adapters).

    Raises:
        OptionError: `parts` has more blocks than the model.
        ModelError: The weights are quantised.
    """
    stack = find_blocks(model)
    named = dict(model.named_parameters())
    if parts.kind == "last_blocks":
        n_blocks = len(stack.blocks)
        if parts.blocks > n_blocks:
            raise OptionError(
                f"`blocks={parts.blocks}` is more than the model has",
                found=f"{n_blocks} blocks",
                fix=f"use for example `blocks={n_blocks}`",
            )
        prefixes = tuple(f"{stack.name}.{block}." for block in range(n_blocks - parts.blocks, n_blocks))
        named = {name: parameter for name, parameter in named.items() if name.startswith(prefixes)}
    elif parts.kind == "lora":
        named = {name: parameter for name, parameter in named.items() if ".lora_" in name}
    if parts.kind != "lora":
        require_gradient(model, named.values(), 'use `parts="lora"`')
    return Tuned(model, named, mask=not stack.causal)


def with_adapters(model: PreTrainedModel, parts: Parts) -> PreTrainedModel:
    """The model itself with fresh LoRA adapters, drawn from the seed on the CPU, so that they are the same everywhere.

    Raises:
        MissingError: The package peft is not installed.
        OptionError: LoRA targets do not exist.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingError(
            "LoRA adapters need the package peft",
            fix="pip install 'hf_safefilter[train]', or use another value of `parts=...`",
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
            fix="name some of these in `targets=...`",
        )
    config = LoraConfig(r=parts.rank, lora_alpha=4 * parts.rank, target_modules=list(parts.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parts.seed)
        adapted = cast("PreTrainedModel", inject_adapter_in_model(config, model))  # peft types it as any module
    adapted.eval()  # type: ignore[no-untyped-call]
    return adapted.requires_grad_(False)
