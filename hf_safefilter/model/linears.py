"""Linear layers with weights laid out once for oneDNN: the same product, faster where torch's default is slow.

On CPUs whose default float32 product runs at a fraction of their peak (MKL on AMD, for one) this doubles the speed of a
whole forward pass; elsewhere it gains nothing. So the gain is measured, and layers are replaced only where it pays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeGuard, cast

import torch
from torch import nn

from hf_safefilter.model.machine_memo import remembered
from hf_safefilter.model.quantised import is_plain

logger = logging.getLogger(__name__)

_ROWS = 512  # rows that the weights are laid out for: other numbers work, and most batches are near this one
_WORTH = 1.05  # a smaller gain is within the noise of the measurement
_ROUNDS = 7
_SMALL = 256 * 256  # weights of up to this many entries are not worth measuring


class PrepackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU; its weight is in oneDNN's own layout and cannot be read or changed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`."""
        product = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return cast("torch.Tensor", product)  # operators under torch.ops are untyped


def prepack_if_faster(model: nn.Module) -> bool:
    """Replace the linear layers of `model` if a short measurement shows a gain; returns whether it did."""
    linears = [module for module in model.modules() if _is_plain_linear(module)]
    largest = max(linears, key=lambda linear: linear.weight.numel(), default=None)
    if largest is None or largest.weight.numel() <= _SMALL or not _possible(largest):
        return False
    outer, inner = largest.weight.shape
    question = f"prepacked {outer} x {inner} {largest.weight.dtype}, {torch.get_num_threads()} threads"
    if not remembered(question, lambda: int(_pays(largest))):
        return False
    prepack(model)
    return True


def _pays(linear: nn.Linear) -> bool:
    with torch.inference_mode():
        x = torch.randn(_ROWS, linear.in_features, dtype=linear.weight.dtype)
        try:
            packed = PrepackedLinear(linear)
        except RuntimeError as reason:  # a processor without the instructions for this number format
            logger.debug("oneDNN cannot lay out %s weights here: %s", linear.weight.dtype, reason)
            return False
        gain = _gain(lambda: linear(x), lambda: packed(x))
    logger.debug("oneDNN's prepacked linear layers run at %.2f times the default's speed", gain)
    return gain >= _WORTH


def prepack(model: nn.Module) -> None:
    """Replace every `nn.Linear` with plain weights; from then on these exist only in the new layout."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _is_plain_linear(child):
                setattr(module, name, PrepackedLinear(child))


def _is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Not one with quantised weights, which may be kept under other names."""
    return type(module) is nn.Linear and "weight" in module._parameters and is_plain(module.weight)


def _possible(linear: nn.Linear) -> bool:
    weight = linear.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _gain(default: Callable[[], torch.Tensor], packed: Callable[[], torch.Tensor]) -> float:
    """Speed of `packed` relative to `default`; both take turns, so that a burst of other work slows both."""
    default(), packed()
    seconds = [(_seconds(default), _seconds(packed)) for _ in range(_ROUNDS)]
    return min(first for first, _ in seconds) / min(second for _, second in seconds)


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    begin = time.perf_counter()
    product()
    return time.perf_counter() - begin
