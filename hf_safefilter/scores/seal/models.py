"""The models of a fit: a copy to train, adapters if wanted, and for Algorithm 1 an auxiliary model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_safefilter.errors import OptionError
from hf_safefilter.model.load import fresh_causal_lm
from hf_safefilter.model.quantised import require_gradient
from hf_safefilter.scores.seal.learner import Learner
from hf_safefilter.scores.seal.losses import sequence_losses
from hf_safefilter.scores.seal.options import Lora, SealOptions
from hf_safefilter.scores.seal.training_processes import Processes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from hf_safefilter.model.source import ModelKey

_NAMES = ("theta", "theta_hat")


def pick_compute(dtype: str, device: torch.device) -> str:
    """The number format of the computation: "auto" is bfloat16 on a GPU that supports it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def stored_in(compute: str, lora: Lora | None) -> str:
    """The number format of the weights: trained weights are float32; a frozen model may be stored in 16 bit."""
    return compute if lora is not None else "float32"


def learners(
    key: ModelKey, device: torch.device, options: SealOptions, lora: Lora | None, compute: str, processes: Processes
) -> list[Learner]:
    """theta and, for Algorithm 1, theta_hat; both start from the same weights.

    Raises:
        OptionError: The model does not have one of the LoRA targets.
    """
    names = _NAMES if options.auxiliary else _NAMES[:1]
    model = fresh_causal_lm(key, device)
    torch.manual_seed(options.seed)
    make = partial(_learner, options=options, compute=compute, device=device, processes=processes)
    if lora is None:
        require_gradient(model, model.parameters(), "train adapters: `lora_rank=8`")
        models = [model.requires_grad_(True), *(copy.deepcopy(model) for _ in names[1:])]
        return [make(copied, dict(copied.named_parameters()), lambda: None) for copied in models]
    adapted = _adapted(model, lora, names)
    adapters = [{n: p for n, p in adapted.named_parameters() if f".{name}." in n} for name in names]
    for other, parameters in zip(names[1:], adapters[1:], strict=True):
        for name, parameter in parameters.items():
            parameter.data.copy_(adapters[0][name.replace(f".{other}.", f".{names[0]}.")])
    return [
        make(adapted, parameters, partial(adapted.set_adapter, name))
        for name, parameters in zip(names, adapters, strict=True)
    ]


def _learner(
    model: nn.Module,
    trained: dict[str, nn.Parameter],
    activate: Callable[[], None],
    *,
    options: SealOptions,
    compute: str,
    device: torch.device,
    processes: Processes,
) -> Learner:
    return Learner(
        model.train(),
        sequence_losses,
        trained,
        options.learning_rate,
        options.micro_batch,
        processes,
        partial(_half, device) if compute == "bfloat16" else nullcontext,
        activate,
    )


def _half(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _adapted(model: PreTrainedModel, lora: Lora, names: tuple[str, ...]) -> PeftModel:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    linear = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    endings = sorted({name.rpartition(".")[2] for name in linear})
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise OptionError(
                f"the LoRA target {target!r} is not a linear layer of {type(model).__name__}",
                found=", ".join(endings),
                fix="name some of these layers",
            )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft computes with any number
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        adapted.add_adapter(name, config)
    return adapted
