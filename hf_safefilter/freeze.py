"""SPPFT: tune a model while the blocks that carry its safety stay as they are (Safety Layers, section 4).

Frozen are attention and MLP of every block in a range; the rest, the norms of these blocks included, trains as usual.
Frozen means `requires_grad=False`: a parameter that merely gets no gradient would still be moved by weight decay.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hf_safefilter.errors import IntegrityError, OptionError
from hf_safefilter.locate.subject import tensors_digest, without_weights
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.scaled import projection_names

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What is frozen in a model.

    Attributes:
        first: lowest block.
        last: highest block, included.
        include_norms: whether the norms of these blocks are frozen too.
        names: of the frozen tensors.
        frozen: numbers in them.
        trainable: numbers that train.
        digest: sha256 over the frozen tensors' bytes; "" for a model without weights.
    """

    first: int
    last: int
    include_norms: bool
    names: tuple[str, ...]
    frozen: int
    trainable: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; the names as their number."""
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
        model: a transformers model; a PEFT model's adapters in these blocks are frozen with them.
        first: lowest block, 0..L-1.
        last: highest block.
        include_norms: freeze the norms of these blocks too.

    Returns:
        What was frozen; hand it to `FrozenBlocks` to have it checked by a Trainer.

    Raises:
        OptionError: a range that is not in the model.
        ModelError: the blocks cannot be found.
    """
    tensors = _tensors(model, first, last, include_norms)
    for tensor in tensors.values():
        tensor.requires_grad_(False)
    return _plan(model, tensors, first, last, include_norms)


def freezing_plan(
    model: str, first: int, last: int, *, include_norms: bool = False, revision: str | None = None
) -> Frozen:
    """What `freeze_safety_blocks` would freeze in a model that is only named: its weights are not loaded."""
    built = without_weights(model, revision)
    return freeze_safety_blocks(built, first, last, include_norms)


def lora_settings(model: str | nn.Module, first: int, last: int, *, revision: str | None = None) -> dict[str, Any]:
    """Arguments of a `LoraConfig` that puts adapters on all projections but those of blocks `first` to `last`.

    Equal in spirit to SPPFT, which the paper has for full fine-tuning only.
    """
    built = without_weights(model, revision) if isinstance(model, str) else model
    stack = find_blocks(built)
    inside = _range(first, last, len(stack.blocks))
    others = [block for block in range(len(stack.blocks)) if block not in inside]
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
        model: name or model.
        first: lowest block left out.
        last: highest block left out.
        options: what else a `LoraConfig` takes (r, lora_alpha, target_modules, ...).

    Raises:
        OptionError: peft is not installed, or a range that is not in the model.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise OptionError("adapters need peft", fix="pip install 'hf_safefilter[train]'") from error
    return lora_without(model, LoraConfig(**({"task_type": "CAUSAL_LM"} | options)), first, last)


def lora_without(model: str | nn.Module, config: LoraConfig, first: int, last: int) -> LoraConfig:
    """`config` with blocks `first` to `last` left out; modules and blocks that it names itself stay the ones it adapts.

    Raises:
        OptionError: modules named by a pattern, which peft does not take together with blocks; no block left over.
    """
    settings = lora_settings(model, first, last)
    asked = config.target_modules
    if isinstance(asked, str) and asked != "all-linear":
        raise OptionError(
            f"target_modules={asked!r} is a pattern, which peft cannot keep out of blocks",
            fix="list the modules, e.g. target_modules=['q_proj', 'v_proj']",
        )
    if asked and asked != "all-linear":
        settings.pop("target_modules")
    if config.layers_to_transform is not None:
        own = config.layers_to_transform
        own = {own} if isinstance(own, int) else set(own)
        settings["layers_to_transform"] = [block for block in settings["layers_to_transform"] if block in own]
        if not settings["layers_to_transform"]:
            raise OptionError(
                f"adapters were asked for in blocks {sorted(own)} only, which are left out", fix="name others"
            )
    return replace(config, **settings)


class FrozenBlocks(TrainerCallback):
    """Checks at the start and at the end of training that the frozen tensors are bit for bit what they were.

    Args:
        frozen: what `freeze_safety_blocks` returned.

    Attributes:
        trainable: numbers that train, counted at the start; None before.
    """

    def __init__(self, frozen: Frozen) -> None:
        if not frozen.digest:
            raise OptionError(
                "that is a plan for a model without weights", fix="freeze the model itself: freeze_safety_blocks(...)"
            )
        self.frozen = frozen
        self.trainable: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **rest: Any) -> None:
        """Check, and report how many parameters train."""
        self._check(model, "before training began")
        self.trainable = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
        logger.warning(
            "blocks %d to %d are frozen: %s parameters; %s train",
            self.frozen.first, self.frozen.last, f"{self.frozen.frozen:,}", f"{self.trainable:,}",
        )  # fmt: skip

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **rest: Any) -> None:
        """Check."""
        self._check(model, "during training")

    def _check(self, model: nn.Module, when: str) -> None:
        there = dict(model.named_parameters())
        tensors = {name: there[name] for name in self.frozen.names if name in there}
        if len(tensors) < len(self.frozen.names):
            raise IntegrityError("the model has lost frozen tensors", fix="freeze after the model has its final form")
        thawed = [name for name, tensor in tensors.items() if tensor.requires_grad]
        if thawed:
            raise IntegrityError(
                f"{len(thawed)} frozen tensors would train", found=thawed[0], fix="freeze after other preparations"
            )
        if tensors_digest(tensors) != self.frozen.digest:
            raise IntegrityError(
                f"frozen tensors changed {when}", fix="do not use this model; look for what wrote them"
            )


def _tensors(model: nn.Module, first: int, last: int, include_norms: bool) -> dict[str, nn.Parameter]:
    """Names and parameters of a range of blocks; a norm is a direct part of a block that says so in its name."""
    stack = find_blocks(model)
    inside = _range(first, last, len(stack.blocks))
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    found = {}
    for number in inside:
        for part, child in stack.blocks[number].named_children():
            if include_norms or not _is_norm(part):
                found |= {names[id(tensor)]: tensor for tensor in child.parameters()}
    return found


def _is_norm(name: str) -> bool:
    return "norm" in name.lower() or name.lower().startswith("ln_")


def _range(first: int, last: int, n_blocks: int) -> range:
    if not (type(first) is int and type(last) is int and 0 <= first <= last < n_blocks):
        raise OptionError(
            f"blocks {first!r} to {last!r} are no range of this model",
            found=f"{n_blocks} blocks",
            fix=f"name blocks from 0 to {n_blocks - 1}, the lower first; the last one is included",
        )
    return range(first, last + 1)


def _plan(model: nn.Module, tensors: Mapping[str, nn.Parameter], first: int, last: int, norms: bool) -> Frozen:
    meta = any(tensor.is_meta for tensor in tensors.values())
    return Frozen(
        first,
        last,
        norms,
        tuple(tensors),
        sum(tensor.numel() for tensor in tensors.values()),
        sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        "" if meta else tensors_digest(tensors),
    )
