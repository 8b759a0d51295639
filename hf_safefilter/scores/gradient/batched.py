"""Many rows, one backward, and still a gradient for each of them.

A layer's weight gradient for one row is a sum over that row's tokens of what the layer was fed and of what came back to
it. Hooks catch both, so one backward through the sum of the rows' losses gives every row's own gradient (or what is
wanted of it, see `meters`) without a gradient of any parameter being computed. It is exact where each module works row
by row; `rules` refuses models of which that is not known, and `agrees` puts the others to the test.

Source of the products: Goodfellow, arXiv 1510.01799; "ghost norms": Li et al., arXiv 2110.05679.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import vjp, vmap

from hf_safefilter.scores.gradient.examples import Example, row_losses
from hf_safefilter.scores.gradient.meters import Exact, Meter, widen
from hf_safefilter.scores.gradient.plain import measure_row
from hf_safefilter.scores.gradient.tuned import Tuned


class NotByRow(Exception):
    """The gradients of this model cannot be told apart by row."""


@dataclass(slots=True)
class _Batch:
    """What the hooks of one forward share."""

    meter: Meter
    rows: int
    shared: frozenset[str]
    tied: dict[str, torch.Tensor] = field(default_factory=dict)
    ids: torch.Tensor | None = None
    seen: set[nn.Module] = field(default_factory=set)


class _Here(threading.local):
    """The batch of the forward that this thread is running, if any: a model may serve several threads at once."""

    batch: _Batch | None = None


_here = _Here()


Rule = Callable[[_Batch, nn.Module, Mapping[str, str], torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the rows of a model are told apart.

    Attributes:
        modules: for each module that owns parameters which count, the rule, and the parameters' full names.
        shared: parameters that an embedding shares with the head.
    """

    modules: Mapping[nn.Module, tuple[Rule, Mapping[str, str]]]
    shared: frozenset[str]


def rules(tuned: Tuned) -> Rules:
    """How the rows of this model are told apart.

    Raises:
        NotByRow: a kind of module, or a way of sharing, of which nothing is known.
    """
    full = {id(one): name for name, one in tuned.parameters.items()}
    found: dict[nn.Module, tuple[Rule, dict[str, str]]] = {}
    owners: dict[str, list[Rule]] = {}
    for module in tuned.model.modules():
        own = {name: full[id(one)] for name, one in module.named_parameters(recurse=False) if id(one) in full}
        if not own:
            continue
        rule = _rule(module)
        found[module] = rule, own
        for name in own.values():
            owners.setdefault(name, []).append(rule)
    for name, sharing in owners.items():
        if len(sharing) > 1 and sorted(rule.__name__ for rule in sharing) != ["_embedding", "_linear"]:
            raise NotByRow(f"{name} belongs to several modules")
    return Rules(found, frozenset(name for name, sharing in owners.items() if len(sharing) > 1))


def _rule(module: nn.Module) -> Rule:
    kind = type(module)
    if isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward:
        return _linear
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return _linear
    if isinstance(module, nn.Embedding) and not (module.max_norm or module.sparse or module.scale_grad_by_freq):
        return _embedding
    if all(one.dim() == 1 for one in module.parameters(recurse=False)) and not list(module.children()):
        return _elementwise
    raise NotByRow(f"{kind.__name__} is not known")


def measure_rows(tuned: Tuned, known: Rules, examples: Sequence[Example], meter: Meter) -> np.ndarray:
    """Stream the gradients of all `examples` into `meter`; returns the losses (n,).

    Raises:
        NotByRow: a module was used in a way that does not tell rows apart.
    """
    _here.batch = _Batch(meter, len(examples), known.shared)
    try:
        with torch.enable_grad():
            losses = row_losses(tuned.model, examples, tuned.mask)
            losses.sum().backward()
    finally:
        _here.batch = None
    return losses.detach().double().numpy(force=True)


@contextmanager
def hooked(known: Rules) -> Iterator[None]:
    """The hooks in place, for `measure_rows` in this thread and others."""
    handles = [
        module.register_forward_hook(_hook(rule, own), with_kwargs=True)
        for module, (rule, own) in known.modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(rule: Rule, own: Mapping[str, str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], out: torch.Tensor) -> None:
        batch = _here.batch
        if batch is None:
            return
        fed = [*args, *kwargs.values()]
        if module in batch.seen or len(fed) != 1 or not isinstance(out, torch.Tensor):
            raise NotByRow(f"{type(module).__name__} is called twice, or with more than one tensor")
        batch.seen.add(module)
        if isinstance(module, nn.Embedding) and own["weight"] in batch.shared:
            batch.ids = fed[0]
        if not out.requires_grad:  # no parameter does, so the graph starts at the first module that counts
            out.requires_grad_()
        out.register_hook(lambda back: rule(batch, module, own, fed[0].detach(), back.detach()))

    return hook


def _linear(batch: _Batch, module: nn.Module, own: Mapping[str, str], fed: torch.Tensor, back: torch.Tensor) -> None:
    fed, back = (widen(_by_row(states, batch.rows)) for states in (fed, back))
    if "bias" in own:
        batch.meter.add(own["bias"], back.sum(1))
    if "weight" not in own:
        return
    left, right = (back, fed) if isinstance(module, nn.Linear) else (fed, back)  # Conv1D keeps its weight transposed
    batch.meter.add_product(own["weight"], left, right)
    if own["weight"] in batch.shared:  # the rows of its gradient that the embedding will add to
        picked = torch.gather(back, 2, batch.ids[:, None, :].expand(-1, back.shape[1], -1))
        batch.tied[own["weight"]] = picked.mT @ fed


def _embedding(batch: _Batch, module: nn.Module, own: Mapping[str, str], ids: torch.Tensor, back: torch.Tensor) -> None:
    name = own["weight"]
    if ids.shape[0] != batch.rows or ids.dim() != 2:
        raise NotByRow("the embedding is not fed row by row")
    back = widen(back) * getattr(module, "embed_scale", 1.0)
    if module.padding_idx is not None:  # torch leaves this token's vector as it is
        back = back.masked_fill((ids == module.padding_idx)[..., None], 0)
    batch.meter.add_tokens(name, ids, back)
    if name in batch.tied:
        batch.meter.add_overlap(2 * (batch.tied.pop(name) * back).sum((1, 2)))


def _elementwise(
    batch: _Batch, module: nn.Module, own: Mapping[str, str], fed: torch.Tensor, back: torch.Tensor
) -> None:
    """Norms and their like: each row's vector-Jacobian product with the module itself, whatever it computes."""
    if fed.shape[0] != batch.rows:
        raise NotByRow(f"{type(module).__name__} is not fed row by row")
    given = {name: getattr(module, name).detach() for name in own}

    def one(fed: torch.Tensor, back: torch.Tensor) -> dict[str, torch.Tensor]:
        return vjp(lambda values: _with(module, values).forward(fed), given)[1](back)[0]

    gradients = vmap(one)(fed, back)
    for name, full in own.items():
        batch.meter.add(full, gradients[name])


def _with(module: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a childless module that computes with other values: the module itself may be in use elsewhere."""
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, **values}
    return twin


def _by_row(states: torch.Tensor, rows: int) -> torch.Tensor:
    """(rows, tokens, width) of states that come so, with further dimensions between, or with rows and tokens as one."""
    if states.dim() > 2 and states.shape[0] == rows:
        return states.flatten(1, -2)
    if states.dim() == 2 and states.shape[0] % rows == 0:
        return states.view(rows, -1, states.shape[1])
    raise NotByRow("a linear layer is not fed row by row")


def agrees(tuned: Tuned, known: Rules) -> bool:
    """Whether two made-up rows, of unlike lengths, get from one backward what each gets from a backward of its own.

    This catches what no list of modules can: parameters used past their module, rows that see each other.
    """
    words = tuned.model.get_input_embeddings().num_embeddings
    examples = [Example((np.arange(size) * 7 + size) % words, size // 2) for size in (6, 11)]
    anchor = {name: one.detach() for name, one in tuned.parameters.items()}
    together, alone = Exact(anchor, 2), Exact(anchor, 2)
    with hooked(known):
        measure_rows(tuned, known, examples, together)
    for row, example in enumerate(examples):
        measure_row(tuned, example, alone, row)
    size = sum(float(one.float().square().sum()) for one in anchor.values()) ** 0.5
    exact = next(iter(anchor.values())).dtype in (torch.float32, torch.float64)
    off = (together.scores() - alone.scores()).abs().max() / size
    norms = (together.squared_norms() / alone.squared_norms() - 1).abs().max()
    return bool(off < (1e-5 if exact else 1e-2)) and bool(norms < (1e-4 if exact else 5e-2))
