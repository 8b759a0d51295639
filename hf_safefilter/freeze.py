"""SPPFT: tune a model while the blocks that carry its safety stay unchanged (Safety Layers, section 4).

Attention and MLP of every block in a range are frozen; everything else, the norms of these blocks included, trains as
usual. Frozen means `requires_grad=False`: a parameter whose gradient is merely zero is still moved by weight decay.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_safefilter.checks import is_whole
from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.locate.subject import tensors_digest, without_weights
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.quantised import require_gradient
from hf_safefilter.model.scaled import projection_names

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frozen:
    """Record of what is frozen in a model.

    Attributes:
        first: Lowest frozen block.
        last: Highest frozen block, included.
        include_norms: Whether the norms of these blocks are frozen too.
        names: Names of the frozen tensors.
        frozen: Number of frozen parameters.
        trainable: Number of parameters that train.
        digest: SHA-256 over the bytes of the frozen tensors; "" for a model without weights.
    """

    first: int
    last: int
    include_norms: bool
    names: tuple[str, ...]
    frozen: int
    trainable: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the number of tensors in place of their names."""
        return {
            "first_block": self.first,
            "last_block": self.last,
            "include_norms": self.include_norms,
            "frozen_tensors": len(self.names),
            "frozen_parameters": self.frozen,
            "trainable_parameters": self.trainable,
            "trainable_share": self.trainable / max(1, self.trainable + self.frozen),
        }


def freeze_safety_blocks(model: nn.Module, first: int, last: int, include_norms: bool = False) -> Frozen:
    """Freeze attention and MLP of blocks `first` to `last` (both included) for full fine-tuning.

    The published code compares strictly (begin < block < end): its 4 and 15 are 5 to 14 here.

    Args:
        model: Transformers model; the adapters of a PEFT model in these blocks are frozen with them.
        first: Lowest block to freeze, 0..L-1.
        last: Highest block to freeze, included.
        include_norms: Whether the norms of these blocks are frozen too.

    Returns:
        Record of what was frozen; pass it to `FrozenBlocks` to have a Trainer check it.

    Raises:
        OptionError: A range that is not in the model.
        ModelError: The blocks cannot be found.
    """
    blocks = _block_range(first, last, len(find_blocks(model).blocks))
    tensors = _tensors(model, blocks, include_norms)
    for tensor in tensors.values():
        tensor.requires_grad_(False)
    return _record(model, tensors, blocks, include_norms)


def freezing_plan(
    model: str,
    first: int,
    last: int,
    *,
    include_norms: bool = False,
    revision: str | None = None,
    lora: bool = False,
) -> Frozen:
    """What `freeze_safety_blocks` would freeze in the model of this name, without loading its weights.

    Raises:
        ModelError: Its weights are quantised, and no adapters are trained (`lora`).
    """
    empty = without_weights(model, revision)
    if not lora:
        require_gradient(empty, (), "use `lora=True`")
    return freeze_safety_blocks(empty, first, last, include_norms)


def lora_settings(model: str | nn.Module, first: int, last: int, *, revision: str | None = None) -> dict[str, Any]:
    """Arguments of a `LoraConfig` that adapts all projections except those of blocks `first` to `last`.

    This carries SPPFT over to LoRA; the paper applies it to full fine-tuning only.

    Raises:
        OptionError: A range that is not in the model, or that leaves no block to adapt.
        ModelError: The blocks cannot be found.
    """
    network = without_weights(model, revision) if isinstance(model, str) else model
    stack = find_blocks(network)
    frozen = _block_range(first, last, len(stack.blocks))
    others = [block for block in range(len(stack.blocks)) if block not in frozen]
    if not others:
        raise OptionError("every block would be left out, so nothing would train", fix="name a smaller range")
    return {
        "target_modules": projection_names(stack.blocks[others[0]]),
        "layers_to_transform": others,
        "layers_pattern": stack.name.rpartition(".")[2],
    }


def lora_config(model: str | nn.Module, first: int, last: int, **options: Any) -> LoraConfig:
    """A `LoraConfig` that leaves blocks `first` to `last` out.

    Args:
        model: Name of the model, or the model.
        first: Lowest block left out.
        last: Highest block left out, included.
        options: Further arguments of `LoraConfig` (r, lora_alpha, target_modules, ...).

    Raises:
        OptionError: peft is not installed, or a range that is not in the model.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise OptionError("adapters need peft", fix="pip install 'hf_safefilter[train]'") from error
    return lora_without(model, LoraConfig(**({"task_type": "CAUSAL_LM"} | options)), first, last)


def lora_without(model: str | nn.Module, config: LoraConfig, first: int, last: int) -> LoraConfig:
    """`config` without blocks `first` to `last`; the modules and blocks that it names itself are respected.

    Raises:
        OptionError: Modules given as a pattern, which peft cannot combine with blocks; or no block left to adapt.
    """
    settings = lora_settings(model, first, last)
    modules = config.target_modules
    if isinstance(modules, str) and modules != "all-linear":
        raise OptionError(
            f"`target_modules={modules!r}` is a pattern, which peft cannot restrict to some blocks",
            fix='list the modules, for example `target_modules=["q_proj", "v_proj"]`',
        )
    if modules and modules != "all-linear":
        settings.pop("target_modules")
    if config.layers_to_transform is not None:
        named = config.layers_to_transform
        blocks = {named} if isinstance(named, int) else set(named)
        settings["layers_to_transform"] = [block for block in settings["layers_to_transform"] if block in blocks]
        if not settings["layers_to_transform"]:
            raise OptionError(
                f"`layers_to_transform={sorted(blocks)}` names only blocks which are left out", fix="name other blocks"
            )
    return replace(config, **settings)


class FrozenBlocks(TrainerCallback):
    """Checks at the start and at the end of training that the frozen tensors are unchanged, bit for bit.

    Args:
        frozen: Record returned by `freeze_safety_blocks`.

    Attributes:
        trainable: Number of parameters that train, counted at the start of training; None before.
    """

    def __init__(self, frozen: Frozen) -> None:
        if not frozen.digest:
            raise OptionError(
                "this is a plan for a model without weights", fix="freeze the model itself: freeze_safety_blocks(...)"
            )
        self.frozen = frozen
        self.trainable: int | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the frozen tensors, and log how many parameters train."""
        self.trainable = _trainable(self._checked(model, "before training began"))
        logger.warning(
            "blocks %d to %d are frozen: %s parameters; %s train",
            self.frozen.first, self.frozen.last, f"{self.frozen.frozen:,}", f"{self.trainable:,}",
        )  # fmt: skip

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the frozen tensors."""
        self._checked(model, "during training")

    def _checked(self, model: nn.Module | None, when: str) -> nn.Module:
        assert model is not None  # a Trainer passes it to every callback
        parameters = dict(model.named_parameters())
        tensors = {name: parameters[name] for name in self.frozen.names if name in parameters}
        if len(tensors) < len(self.frozen.names):
            raise IntegrityError("the model has lost frozen tensors", fix="freeze after the model has its final form")
        thawed = [name for name, tensor in tensors.items() if tensor.requires_grad]
        if thawed:
            raise IntegrityError(
                f"{len(thawed)} frozen tensors would train", found=thawed[0], fix="freeze after all other preparations"
            )
        if tensors_digest(tensors) != self.frozen.digest:
            raise IntegrityError(
                f"frozen tensors changed {when}", fix="do not use this model; find the code that changed them"
            )
        return model


def _tensors(model: nn.Module, blocks: range, include_norms: bool) -> dict[str, nn.Parameter]:
    """Parameters of a range of blocks, by name; a norm is a direct child of a block with a norm's name."""
    stack = find_blocks(model)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    tensors: dict[str, nn.Parameter] = {}
    for block in blocks:
        for child_name, child in stack.blocks[block].named_children():
            if include_norms or not _is_norm(child_name):
                tensors |= {names[id(tensor)]: tensor for tensor in child.parameters()}
    return tensors


def _is_norm(name: str) -> bool:
    return "norm" in name.lower() or name.lower().startswith("ln_")


def _block_range(first: int, last: int, n_blocks: int) -> range:
    if not (is_whole(first) and is_whole(last) and 0 <= first <= last < n_blocks):
        raise OptionError(
            f"blocks {first!r} to {last!r} are not a range of blocks of this model",
            found=f"{n_blocks} blocks",
            fix=f"name blocks from 0 to {n_blocks - 1}, the lower one first; the last one is included",
        )
    return range(int(first), int(last) + 1)


def _trainable(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


def _record(model: nn.Module, tensors: Mapping[str, nn.Parameter], blocks: range, include_norms: bool) -> Frozen:
    on_meta = any(tensor.is_meta for tensor in tensors.values())
    return Frozen(
        first=blocks[0],
        last=blocks[-1],
        include_norms=include_norms,
        names=tuple(tensors),
        frozen=sum(tensor.numel() for tensor in tensors.values()),
        trainable=_trainable(model),
        digest="" if on_meta else tensors_digest(tensors),
    )
