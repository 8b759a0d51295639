"""A gradient for each of many rows from one backward pass.

A layer's weight gradient for one row is the sum, over that row's tokens, of the products of the layer's input and of
the gradient of its output. Hooks catch both, so one backward pass through the sum of the rows' losses gives every row's
own gradient (or the sums that `meters` needs of it) without computing the gradient of any parameter. This is exact if
each module processes each row by itself; `rules_of` refuses models of which that is not known, `agrees` tests the rest.

Source of the products: Goodfellow, arXiv 1510.01799; "ghost norms": Li et al., arXiv 2110.05679.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.func import vjp, vmap

from hf_safefilter.scores.gradient.examples import Example, embedding_of, row_losses
from hf_safefilter.scores.gradient.meters import Exact, Meter, widen
from hf_safefilter.scores.gradient.single_row import measure_row
from hf_safefilter.scores.gradient.tuned import Tuned


class NotByRow(Exception):
    """The gradients of this model cannot be separated by row."""


@dataclass(slots=True)
class _Batch:
    """What the hooks of one forward pass share."""

    meter: Meter
    rows: int
    shared: frozenset[str]
    tied: dict[str, torch.Tensor] = field(default_factory=dict)
    ids: torch.Tensor | None = None
    seen: set[nn.Module] = field(default_factory=set)


class _Running(threading.local):
    """The batch whose forward pass this thread runs, if any: several threads may use a model at the same time."""

    batch: _Batch | None = None


_running = _Running()


Rule = Callable[[_Batch, nn.Module, Mapping[str, str], torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the gradients of a model are separated by row.

    Attributes:
        modules: For each module that owns chosen parameters, its rule and the parameters' full names by own name.
        shared: Names of parameters that an embedding shares with the head.
    """

    modules: Mapping[nn.Module, tuple[Rule, Mapping[str, str]]]
    shared: frozenset[str]


def rules_of(tuned: Tuned) -> Rules:
    """How the gradients of this model are separated by row.

    Raises:
        NotByRow: There is no rule for a kind of module, or for a parameter that several modules share.
    """
    full_names = {id(parameter): name for name, parameter in tuned.parameters.items()}
    modules: dict[nn.Module, tuple[Rule, dict[str, str]]] = {}
    sharing: dict[str, list[Rule]] = {}
    for module in tuned.model.modules():
        named = {name: id(parameter) for name, parameter in module.named_parameters(recurse=False)}
        own = {name: full_names[key] for name, key in named.items() if key in full_names}
        if not own:
            continue
        rule = _rule(module)
        modules[module] = rule, own
        for name in own.values():
            sharing.setdefault(name, []).append(rule)
    shared = {name: rules for name, rules in sharing.items() if len(rules) > 1}
    for name, rules in shared.items():
        if set(rules) != {_embedding, _linear} or len(rules) > 2:
            raise NotByRow(f"{name} belongs to several modules")
    return Rules(modules, frozenset(shared))


def _rule(module: nn.Module) -> Rule:
    kind = type(module)
    if isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward:
        return _linear
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return _linear
    if isinstance(module, nn.Embedding) and not (module.max_norm or module.sparse or module.scale_grad_by_freq):
        return _embedding
    if all(parameter.dim() == 1 for parameter in module.parameters(recurse=False)) and not list(module.children()):
        return _elementwise
    raise NotByRow(f"there is no rule for {kind.__name__}")


def measure_rows(tuned: Tuned, rules: Rules, examples: Sequence[Example], meter: Meter) -> np.ndarray:
    """Add the gradients of all `examples` to `meter`; returns the losses (n,).

    Raises:
        NotByRow: A module was used in a way that mixes rows.
    """
    _running.batch = _Batch(meter, len(examples), rules.shared)
    try:
        with torch.enable_grad():
            losses = row_losses(tuned.model, examples, tuned.mask)
            torch.autograd.backward(losses.sum())
    finally:
        _running.batch = None
    return losses.detach().double().numpy(force=True)


@contextmanager
def hooked(rules: Rules) -> Iterator[None]:
    """Inside the block, the hooks that `measure_rows` needs are installed, for this thread and others."""
    handles = [
        module.register_forward_hook(_hook(rule, own), with_kwargs=True)
        for module, (rule, own) in rules.modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(rule: Rule, own: Mapping[str, str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        batch = _running.batch
        if batch is None:
            return
        inputs = [*args, *kwargs.values()]
        if module in batch.seen or len(inputs) != 1 or not isinstance(output, torch.Tensor):
            raise NotByRow(f"{type(module).__name__} is called twice, or with more than one tensor")
        batch.seen.add(module)
        if isinstance(module, nn.Embedding) and own["weight"] in batch.shared:
            batch.ids = inputs[0]
        if not output.requires_grad:  # no parameter does, so the graph starts at the first module with a rule
            output.requires_grad_()
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda back: rule(batch, module, own, inputs[0].detach(), back.detach())
        )

    return hook


def _linear(batch: _Batch, module: nn.Module, own: Mapping[str, str], states: torch.Tensor, back: torch.Tensor) -> None:
    states, back = widen(_by_row(states, batch.rows)), widen(_by_row(back, batch.rows))
    if "bias" in own:
        batch.meter.add(own["bias"], back.sum(1))
    if "weight" not in own:
        return
    left, right = (back, states) if isinstance(module, nn.Linear) else (states, back)  # Conv1D's weight is transposed
    batch.meter.add_product(own["weight"], left, right)
    if own["weight"] in batch.shared:  # the rows of its gradient that the embedding will add to
        if batch.ids is None:
            raise NotByRow(f"{type(module).__name__} runs before the embedding that shares its weight")
        chosen = torch.gather(back, 2, batch.ids[:, None, :].expand(-1, back.shape[1], -1))
        batch.tied[own["weight"]] = chosen.mT @ states


def _embedding(batch: _Batch, module: nn.Module, own: Mapping[str, str], ids: torch.Tensor, back: torch.Tensor) -> None:
    name = own["weight"]
    if ids.shape[0] != batch.rows or ids.dim() != 2:
        raise NotByRow("the input of the embedding has no dimension of rows")
    back = widen(back) * getattr(module, "embed_scale", 1.0)
    padding = cast("nn.Embedding", module).padding_idx
    if padding is not None:  # this token's vector has no gradient in torch
        back = back.masked_fill((ids == padding)[..., None], 0)
    batch.meter.add_tokens(name, ids, back)
    if name in batch.tied:
        batch.meter.add_overlap(2 * (batch.tied.pop(name) * back).sum((1, 2)))


def _elementwise(
    batch: _Batch, module: nn.Module, own: Mapping[str, str], states: torch.Tensor, back: torch.Tensor
) -> None:
    """For norms and similar modules: each row's vector-Jacobian product with the module, whatever it computes."""
    if states.shape[0] != batch.rows:
        raise NotByRow(f"the input of {type(module).__name__} has no dimension of rows")
    values = {name: getattr(module, name).detach() for name in own}

    def gradients_of_row(states: torch.Tensor, back: torch.Tensor) -> dict[str, torch.Tensor]:
        product = vjp(lambda changed: _with(module, changed).forward(states), values)[1]
        return cast("dict[str, torch.Tensor]", product(back)[0])  # the transforms of torch.func are untyped

    gradients = vmap(gradients_of_row)(states, back)
    for name, full in own.items():
        batch.meter.add(full, gradients[name])


def _with(module: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a module without children, with other values: the module itself may be in use in another thread."""
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, **values}  # type: ignore[dict-item]  # plain tensors serve as well
    return twin


def _by_row(states: torch.Tensor, rows: int) -> torch.Tensor:
    """States as (rows, tokens, width), from (rows, ..., width) or (rows * tokens, width)."""
    if states.dim() > 2 and states.shape[0] == rows:
        return states.flatten(1, -2)
    if states.dim() == 2 and states.shape[0] % rows == 0:
        return states.view(rows, -1, states.shape[1])
    raise NotByRow("the input of a linear layer has no dimension of rows")


def agrees(tuned: Tuned, rules: Rules) -> bool:
    """Whether two synthetic rows of different lengths get the same gradients from one backward pass as from two.

    This catches what no list of modules can: parameters used outside their module, and rows that see each other.
    """
    words = embedding_of(tuned.model).num_embeddings
    examples = [Example((np.arange(n) * 7 + n) % words, np.arange(n) >= n // 2) for n in (6, 11)]
    anchor = {name: parameter.detach() for name, parameter in tuned.parameters.items()}
    together, alone = Exact(anchor, 2), Exact(anchor, 2)
    with hooked(rules):
        measure_rows(tuned, rules, examples, together)
    for row, example in enumerate(examples):
        measure_row(tuned, example, alone, row)
    size = sum(float(tensor.float().square().sum()) for tensor in anchor.values()) ** 0.5
    exact = next(iter(anchor.values())).dtype in (torch.float32, torch.float64)
    difference = (together.scores() - alone.scores()).abs().max() / size
    norms = (together.squared_norms() / alone.squared_norms() - 1).abs().max()
    return bool(difference < (1e-5 if exact else 1e-2)) and bool(norms < (1e-4 if exact else 5e-2))
