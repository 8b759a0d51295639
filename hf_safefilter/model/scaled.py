"""Blocks made louder or quieter for a while: their projections times a factor, and back again bit for bit.

Methods that ask which blocks carry safety amplify or attenuate some and count refusals (Safety Layers, LARF). Nothing
is copied but the matrices of the blocks at hand, and nothing is divided back: the first tensors are put in place again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.model.blocks import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""The seven matrices of a block that are scaled; norms, biases and routers are left alone."""

WITHOUT_O = tuple(part for part in PROJECTIONS if part != "o")
"""What the published tables of Safety Layers were most likely made with: the first release left the output alone."""

LEAST_EFFECT = 0.2
"""A scale of 1.3 that moves a block's output by less than this does nothing."""

Form = Literal["weights", "outputs", "branches"]

_ATTENTION = {
    "q": "q_proj query q wq", "k": "k_proj key k wk", "v": "v_proj value v wv",
    "qkv": "qkv_proj query_key_value c_attn Wqkv qkv W_pack", "o": "o_proj out_proj c_proj dense wo Wo",
}  # fmt: skip
_MLP = {
    "gate": "gate_proj w1", "up": "up_proj w3 fc1 fc_in c_fc dense_h_to_4h wi", "gateup": "gate_up_proj Wi",
    "down": "down_proj w2 fc2 fc_out c_proj dense_4h_to_h wo Wo",
}  # fmt: skip
_PARTS = {"qkv": ("q", "k", "v"), "gateup": ("gate", "up")}
_ROUTERS = ("gate", "router", "shared_expert_gate", "wg")
_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is being scaled, and how.

    Attributes:
        blocks: their numbers.
        by: the factor.
        form: "weights": the matrices themselves; "outputs": what they give, bias left out, where weights are quantised;
            "branches": what attention and MLP add to the residual stream, where a norm after them would undo the rest.
    """

    blocks: tuple[int, ...]
    by: float
    form: Form


@contextmanager
def scaled(
    model: PreTrainedModel, blocks: int | Iterable[int], by: float, parts: Sequence[str] = PROJECTIONS
) -> Iterator[Scaling]:
    """Inside the block, the projections of `blocks` are multiplied by `by`; afterwards all is as before, bit for bit.

    Fused projections (Phi-3, GPT-NeoX) and those of experts are scaled whole. Quantised ones are scaled by their
    outputs. In blocks with a norm after each branch (Gemma 2 and 3, OLMo 2, GLM 4) that norm would cancel the scale, so
    there the branches' own outputs are multiplied; a scale of 1.3 then means 1.3, where on seven matrices in a row it
    means 1.7 to 2.2.

    Args:
        model: a transformers model, with or without a head; it is changed in place and never copied.
        blocks: number or numbers of blocks, 0..L-1.
        by: the factor; above 0, not 1.
        parts: some of `PROJECTIONS`.

    Raises:
        OptionError: a block that is not there, a factor that is none, unknown parts, or a fused matrix cut by `parts`.
        ModelError: no blocks, or projections that cannot be told.
    """
    stack = find_blocks(model)
    numbers = _checked(blocks, by, parts, len(stack.blocks))
    with ExitStack() as undo:
        forms = {_scale(stack.blocks[number], by, parts, undo) for number in numbers}
        yield Scaling(numbers, by, max(forms, key=("weights", "outputs", "branches").index))


def projection_names(block: nn.Module) -> list[str]:
    """Last names of a block's projections, as adapters are told them; raises as `scaled` does."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path, _, _ in _projections(block)))


def form_of(model: PreTrainedModel) -> Form:
    """How `scaled` works on this model."""
    with scaled(model, 0, 1.5) as scaling:
        return scaling.form


def scaling_effect(
    model: PreTrainedModel, block: int, run: Callable[[], Any], by: float = 1.3, parts: Sequence[str] = PROJECTIONS
) -> float:
    """How much a scale moves what a block adds: relative change of the norm of output minus input.

    Args:
        model: as for `scaled`.
        block: number of the block.
        run: a forward pass of the model over some text.
        by: the factor.
        parts: as for `scaled`.
    """
    before = _added(model, block, run)
    with scaled(model, block, by, parts):
        return abs(_added(model, block, run) / before - 1) if before else 0.0


def require_effect(model: PreTrainedModel, block: int, run: Callable[[], Any], parts: Sequence[str]) -> None:
    """Raise unless scaling does something to this model: else a search would measure nothing, silently.

    Raises:
        ModelError: a scale of 1.3 moves the block's output by less than `LEAST_EFFECT`.
    """
    effect = scaling_effect(model, block, run, parts=parts)
    if not effect >= LEAST_EFFECT:
        raise ModelError(
            f"scaling block {block} of {type(model).__name__} by 1.3 moves its output by {effect:.0%} only",
            found="a norm or another part of this architecture cancels the scale",
            fix="use the angular gap instead: method='gap'",
        )


def _checked(blocks: int | Iterable[int], by: float, parts: Sequence[str], n_blocks: int) -> tuple[int, ...]:
    numbers = (blocks,) if isinstance(blocks, int) else tuple(blocks)
    if not numbers or any(type(number) is not int or not 0 <= number < n_blocks for number in numbers):
        raise OptionError(
            f"blocks {list(numbers)} are not all in this model",
            found=f"{n_blocks} blocks",
            fix=f"choose from 0 to {n_blocks - 1}",
        )
    if not (isinstance(by, (int, float)) and math.isfinite(by) and by > 0 and by != 1):
        raise OptionError(f"a scale of {by!r} changes nothing, or is none", fix="use e.g. 0.8 or 1.2")
    if not parts or not set(parts) <= set(PROJECTIONS):
        raise OptionError(f"parts {list(parts)} are not known", fix=f"use some of {', '.join(PROJECTIONS)}")
    return tuple(sorted(set(numbers)))


def _scale(block: nn.Module, by: float, parts: Sequence[str], undo: ExitStack) -> Form:
    if norms := _post_norms(block):
        for norm, branch in zip(norms, ("qkvo", ("gate", "up", "down")), strict=True):
            if set(branch) & set(parts):
                undo.callback(norm.register_forward_hook(lambda _, args, out: out * by).remove)
        return "branches"
    forms: set[Form] = set()
    for path, role, thing in _projections(block):
        own = _PARTS.get(role, (role,))
        if not set(own) & set(parts):
            continue
        if not set(own) <= set(parts):
            raise OptionError(
                f"{path} holds {', '.join(own)} in one matrix and cannot be scaled in part", fix=f"name all of {own}"
            )
        forms.add(_scale_one(thing, by, undo))
    return max(forms, key=("weights", "outputs").index)


def _scale_one(thing: nn.Module | nn.Parameter, by: float, undo: ExitStack) -> Form:
    weight = thing if isinstance(thing, nn.Parameter) else getattr(thing, "weight", None)
    plain = isinstance(thing, nn.Parameter) or type(thing) is nn.Linear or type(thing).__name__ == "Conv1D"
    if plain and weight.is_floating_point():
        undo.callback(setattr, weight, "data", weight.data)
        weight.data = weight.data * by
        return "weights"

    def louder(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        bias = getattr(module, "bias", None)
        bias = bias() if callable(bias) else bias  # torch's own quantised layers keep it behind a method
        return (out - bias) * by + bias if isinstance(bias, torch.Tensor) else out * by

    undo.callback(thing.register_forward_hook(louder).remove)
    return "outputs"


def _post_norms(block: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The norms after attention and after the MLP, in blocks that have both."""
    for names in _POST_NORMS:
        norms = tuple(getattr(block, name, None) for name in names)
        if all(norms):
            return norms
    return None


def _projections(block: nn.Module) -> list[tuple[str, str, nn.Module | nn.Parameter]]:
    """Path, role and module (or parameter, for experts kept in one tensor) of every projection of a block."""
    found: list[tuple[str, str, nn.Module | nn.Parameter]] = []
    unknown: list[str] = []

    def look(module: nn.Module, path: str, in_attention: bool) -> None:
        roles = _ATTENTION if in_attention else _MLP
        for name, child in module.named_children():
            here = f"{path}.{name}".lstrip(".")
            within = in_attention or "attn" in name.lower() or "attention" in name.lower()
            if (role := _role(roles, name)) and _is_linear(child):
                found.append((here, role, child))
            elif _is_linear(child):
                if name not in _ROUTERS:
                    unknown.append(here)
            else:
                look(child, here, within)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and (role := _role(roles, name)):
                found.append((f"{path}.{name}", role, parameter))

    look(block, "", False)
    if unknown or not found:
        raise ModelError(
            f"the projections of {type(block).__name__} cannot be told",
            found=", ".join(unknown) or "no linear layers",
            fix="use the angular gap instead: method='gap'",
        )
    return found


def _role(roles: dict[str, str], name: str) -> str | None:
    return next((role for role, names in roles.items() if name in names.split()), None)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or hasattr(module, "in_features")


@torch.no_grad()
def _added(model: PreTrainedModel, block: int, run: Callable[[], Any]) -> float:
    norms: list[float] = []

    def measure(_: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        norms.append(float(((out[0] if isinstance(out, tuple) else out) - states).float().norm()))

    handle = find_blocks(model).blocks[block].register_forward_hook(measure, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return norms[0]
