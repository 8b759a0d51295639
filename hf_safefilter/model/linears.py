"""Linear layers with weights laid out once for oneDNN: the same product, faster where torch's default is slow.

On CPUs whose default float32 product runs at a fraction of their peak (MKL on AMD, for one) this doubles the speed of a
whole forward; elsewhere it gains nothing. So it is measured, not guessed, and left alone where it does not pay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from hf_safefilter.model.machine_memo import remembered

logger = logging.getLogger(__name__)

_ROWS = 512  # rows the weights are laid out for: other numbers work, most batches are near it
_WORTH = 1.05  # a gain below this is within the noise of the measurement
_ROUNDS = 7
_SMALL = 256 * 256  # weights up to here are not worth measuring


class PrepackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU; its weight lives in oneDNN's own layout and cannot be read or changed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def prepack_if_faster(model: nn.Module) -> bool:
    """Replace the linear layers of `model` where a short measurement says that it pays; returns whether it did."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    largest = max(linears, key=lambda linear: linear.weight.numel(), default=None)
    if largest is None or largest.weight.numel() <= _SMALL or not _possible(largest):
        return False
    out, inner = largest.weight.shape
    question = f"prepacked {out} x {inner} {largest.weight.dtype}, {torch.get_num_threads()} threads"
    if not remembered(question, lambda: int(_pays(largest))):
        return False
    prepack(model)
    return True


def _pays(linear: nn.Linear) -> bool:
    with torch.inference_mode():
        x = torch.randn(_ROWS, linear.in_features, dtype=linear.weight.dtype)
        packed = PrepackedLinear(linear)
        gain = _gain(lambda: linear(x), lambda: packed(x))
    logger.debug("oneDNN's prepacked linear layers run at %.2f times the default's speed", gain)
    return gain >= _WORTH


def prepack(model: nn.Module) -> None:
    """Replace every `nn.Linear` of `model`; their weights exist in the new layout only from then on."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PrepackedLinear(child))


def _possible(linear: nn.Linear) -> bool:
    weight = linear.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _gain(one: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]) -> float:
    """How many times as fast the other is; taken in turns, so that a neighbour's burst falls on both."""
    one(), other()
    taken = [(_once(one), _once(other)) for _ in range(_ROUNDS)]
    return min(first for first, _ in taken) / min(second for _, second in taken)


def _once(product: Callable[[], torch.Tensor]) -> float:
    begin = time.perf_counter()
    product()
    return time.perf_counter() - begin
