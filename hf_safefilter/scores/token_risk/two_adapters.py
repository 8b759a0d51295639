"""One base model with two LoRA adapters, of which one is active at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.model import load
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.scores.token_risk.adapter_options import DEGRADED, UTILITY, AdapterOptions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from hf_safefilter.model.source import ModelKey


class TwoAdapters:
    """A base model of its own, in eval mode, with the adapters `UTILITY` and `DEGRADED`, equal until they are trained.

    Args:
        key: The pinned base model.
        device: Where it computes.
        options: Options of the adapters.

    Raises:
        OptionError: The model has no linear layers of these names.
        ModelError: The model cannot be loaded.
    """

    def __init__(self, key: ModelKey, device: torch.device, options: AdapterOptions) -> None:
        base = load.fresh_causal_lm(key, torch.device("cpu"))  # in eval mode, so nothing is dropped out
        self._peft = _adapted(base, options)
        self.model: PreTrainedModel = load.moved(base, device)  # peft has changed its layers in place
        self.model.requires_grad_(False)
        self.mask = not find_blocks(self.model).causal

    def use(self, name: str) -> None:
        """Make an adapter the active one."""
        self._peft.set_adapter(name)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The trainable parameters of an adapter."""
        return [weight for path, weight in self.model.named_parameters() if f".{name}." in path and ".lora_" in path]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's weights on the CPU, under the names under which PEFT saves them."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self._peft, adapter_name=name)
        return {path: weight.detach().cpu().contiguous() for path, weight in state.items()}

    def put(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the weights of an adapter to what `tensors` has returned.

        Raises:
            IntegrityError: They are those of another model, or of other options.
        """
        from peft import set_peft_model_state_dict

        own = self.tensors(name)
        if {path: one.shape for path, one in own.items()} != {path: one.shape for path, one in tensors.items()}:
            raise IntegrityError(
                f"the {name} adapter does not fit its model", found=f"{len(tensors)} tensors", fix="fit it again"
            )
        set_peft_model_state_dict(self._peft, dict(tensors), adapter_name=name)


def _adapted(base: PreTrainedModel, options: AdapterOptions) -> PeftModel:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    linears = {
        path.rpartition(".")[2]
        for path, module in base.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "." in path
    }
    absent = [target for target in options.targets if target not in linears]
    if absent or not options.targets:
        raise OptionError(
            f"LoRA targets {', '.join(absent) or '(none given)'} do not exist in {type(base).__name__}",
            found=", ".join(sorted(linears)),
            fix="name some of these in `targets=...`",
        )
    adapted: PeftModel | None = None
    for name in (UTILITY, DEGRADED):
        config = LoraConfig(
            r=options.rank, lora_alpha=options.rank, target_modules=list(options.targets), task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)  # on the CPU, so that both start from the same weights everywhere
            if adapted is None:
                adapted = cast("PeftModel", get_peft_model(base, config, adapter_name=name))
            else:
                adapted.add_adapter(name, config)
    assert adapted is not None  # there are two
    return adapted
