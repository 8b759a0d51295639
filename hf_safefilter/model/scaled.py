"""Blocks amplified or attenuated for a while: their projections times a factor, then restored bit for bit.

Methods that search for the blocks that carry safety scale some of them and count refusals (Safety Layers, LARF). Only
the matrices of those blocks are copied, and nothing is divided back: the original tensors are put in place again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from hf_safefilter.checks import is_finite, is_whole
from hf_safefilter.errors import ModelError, OptionError
from hf_safefilter.model.blocks import find_blocks
from hf_safefilter.model.quantised import is_plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""The seven matrices of a block that are scaled; norms, biases and routers are left unchanged."""

WITHOUT_O = tuple(part for part in PROJECTIONS if part != "o")
"""What the published tables of Safety Layers were most likely made with: its first release did not scale the output."""

LEAST_EFFECT = 0.2
"""A scale of 1.3 counts as without effect if it changes what a block adds by a smaller share than this."""

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
        blocks: Numbers of the blocks.
        by: The factor.
        form: "weights": the matrices themselves; "outputs": their outputs without the bias, for quantised weights;
            "branches": what attention and MLP add to the residual stream, where a norm after them would cancel the
            other two.
    """

    blocks: tuple[int, ...]
    by: float
    form: Form


@contextmanager
def scaled(
    model: PreTrainedModel, blocks: int | Iterable[int], by: float, parts: Sequence[str] = PROJECTIONS
) -> Iterator[Scaling]:
    """Inside the block, the projections of `blocks` are multiplied by `by`; afterwards all is as before, bit for bit.

    Fused projections (Phi-3, GPT-NeoX) and those of experts are scaled as a whole. For quantised ones, the outputs are
    scaled. In blocks with a norm after each branch (Gemma 2 and 3, OLMo 2, GLM 4) that norm would cancel the scale, so
    the outputs of the branches are multiplied instead; a scale of 1.3 then means 1.3, whereas on the seven matrices,
    which follow each other, it amounts to 1.7 to 2.2.

    Args:
        model: Transformers model, with or without a head; it is changed in place and never copied.
        blocks: Number or numbers of blocks, 0..L-1.
        by: The factor; above 0, and not 1.
        parts: Some of `PROJECTIONS`.

    Raises:
        OptionError: A block does not exist, the factor has no effect or is not positive, a part is not known, or
            `parts` names only a part of a fused matrix.
        ModelError: The model has no blocks, or projections that are not recognised.
    """
    stack = find_blocks(model)
    numbers = _checked(blocks, by, parts, len(stack.blocks))
    with ExitStack() as undo:
        forms = {_scale(stack.blocks[number], by, parts, undo) for number in numbers}
        yield Scaling(numbers, by, max(forms, key=("weights", "outputs", "branches").index))


def projection_names(block: nn.Module) -> list[str]:
    """Last components of the names of a block's projections, as adapters expect them; raises as `scaled` does."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path, _, _ in _projections(block)))


def form_of(model: PreTrainedModel) -> Form:
    """The form in which `scaled` scales this model."""
    with scaled(model, 0, 1.5) as scaling:
        return scaling.form


def scaling_effect(
    model: PreTrainedModel, block: int, run: Callable[[], Any], by: float = 1.3, parts: Sequence[str] = PROJECTIONS
) -> float:
    """How much a scale changes what a block adds: relative change of the norm of its output minus its input.

    Args:
        model: As for `scaled`.
        block: Number of the block.
        run: Runs a forward pass of the model over some text.
        by: The factor.
        parts: As for `scaled`.
    """
    before = _added(model, block, run)
    with scaled(model, block, by, parts):
        return abs(_added(model, block, run) / before - 1) if before else 0.0


def require_effect(model: PreTrainedModel, block: int, run: Callable[[], Any], parts: Sequence[str]) -> None:
    """Raise unless scaling has an effect on this model: otherwise a search would silently measure nothing.

    Raises:
        ModelError: A scale of 1.3 changes what the block adds by a share of less than `LEAST_EFFECT`.
    """
    effect = scaling_effect(model, block, run, parts=parts)
    if not effect >= LEAST_EFFECT:
        raise ModelError(
            f"scaling block {block} of {type(model).__name__} by 1.3 changes its output by only {effect:.0%}",
            found="a norm or another part of this architecture cancels the scale",
            fix='use the angular gap instead: `method="gap"`',
        )


def _checked(blocks: int | Iterable[int], by: float, parts: Sequence[str], n_blocks: int) -> tuple[int, ...]:
    numbers = (blocks,) if isinstance(blocks, int) else tuple(blocks)
    if not numbers or not all(is_whole(number) and 0 <= number < n_blocks for number in numbers):
        raise OptionError(
            f"blocks {list(numbers)} are not all in this model",
            found=f"{n_blocks} blocks",
            fix=f"choose from 0 to {n_blocks - 1}",
        )
    if not is_finite(by) or by <= 0 or by == 1:
        raise OptionError(f"the scale {by!r} is not a number above 0 other than 1", fix="use for example 0.8 or 1.2")
    if not parts or not set(parts) <= set(PROJECTIONS):
        raise OptionError(f"parts {list(parts)} are not known", fix=f"use some of {', '.join(PROJECTIONS)}")
    return tuple(sorted({int(number) for number in numbers}))


def _scale(block: nn.Module, by: float, parts: Sequence[str], undo: ExitStack) -> Form:
    if norms := _post_norms(block):
        for norm, branch in zip(norms, ("qkvo", ("gate", "up", "down")), strict=True):
            if set(branch) & set(parts):
                undo.callback(norm.register_forward_hook(lambda _, args, output: output * by).remove)
        return "branches"
    forms: set[Form] = set()
    for path, role, projection in _projections(block):
        own = _PARTS.get(role, (role,))
        if not set(own) & set(parts):
            continue
        if not set(own) <= set(parts):
            raise OptionError(
                f"{path} holds {', '.join(own)} in one matrix and cannot be scaled in part",
                fix=f"name all of {', '.join(own)}",
            )
        forms.add(_scale_projection(projection, by, undo))
    return max(forms, key=("weights", "outputs").index)


def _scale_projection(projection: nn.Module | nn.Parameter, by: float, undo: ExitStack) -> Form:
    weight = _plain_weight(projection)
    if weight is not None and is_plain(weight):
        undo.callback(setattr, weight, "data", weight.data)
        weight.data = weight.data * by
        return "weights"

    def amplify(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        bias = getattr(module, "bias", None)
        bias = bias() if callable(bias) else bias  # torch's own quantised layers have a method of that name
        return (output - bias) * by + bias if isinstance(bias, torch.Tensor) else output * by

    # only a module gets here: parameters of experts are of floating point
    undo.callback(cast("nn.Module", projection).register_forward_hook(amplify).remove)
    return "outputs"


def _plain_weight(projection: nn.Module | nn.Parameter) -> nn.Parameter | None:
    """The matrix of a projection; None for layers that compute with something else than their `weight`."""
    if isinstance(projection, nn.Parameter):
        return projection
    if type(projection) is nn.Linear or type(projection).__name__ == "Conv1D":
        return projection._parameters.get("weight")  # some formats keep theirs under another name
    return None


def _post_norms(block: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The norms after attention and after the MLP, in blocks that have both."""
    for names in _POST_NORMS:
        attention, mlp = (getattr(block, name, None) for name in names)
        if attention and mlp:
            return attention, mlp
    return None


def _projections(block: nn.Module) -> list[tuple[str, str, nn.Module | nn.Parameter]]:
    """Path, role and module (or parameter, for experts kept in one tensor) of every projection of a block."""
    projections: list[tuple[str, str, nn.Module | nn.Parameter]] = []
    unknown: list[str] = []

    def collect(module: nn.Module, path: str, in_attention: bool) -> None:
        roles = _ATTENTION if in_attention else _MLP
        for name, child in module.named_children():
            child_path = f"{path}.{name}".lstrip(".")
            within = in_attention or "attn" in name.lower() or "attention" in name.lower()
            if (role := _role(roles, name)) and _is_linear(child):
                projections.append((child_path, role, child))
            elif _is_linear(child):
                if name not in _ROUTERS:
                    unknown.append(child_path)
            else:
                collect(child, child_path, within)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and (role := _role(roles, name)):
                projections.append((f"{path}.{name}", role, parameter))

    collect(block, "", False)
    if unknown or not projections:
        raise ModelError(
            f"the projections of {type(block).__name__} are not recognised",
            found=", ".join(unknown) or "no linear layers",
            fix='use the angular gap instead: `method="gap"`',
        )
    return projections


def _role(roles: dict[str, str], name: str) -> str | None:
    return next((role for role, names in roles.items() if name in names.split()), None)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or hasattr(module, "in_features")


@torch.no_grad()
def _added(model: PreTrainedModel, block: int, run: Callable[[], Any]) -> float:
    norms: list[float] = []

    def measure(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        norms.append(float(((output[0] if isinstance(output, tuple) else output) - states).float().norm()))

    handle = find_blocks(model).blocks[block].register_forward_hook(measure, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return norms[0]
