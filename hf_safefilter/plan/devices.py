"""How fast machines multiply matrices: figures of the vendors for dense products, and a measurement of this one."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import lru_cache

from hf_safefilter.errors import OptionError


@dataclass(frozen=True, slots=True)
class Device:
    """The speed and memory of a machine.

    Attributes:
        name: The name by which it is asked for.
        half: Peak of dense 16-bit matrix products, in TFLOP/s.
        single: The same in float32, in TFLOP/s.
        bandwidth: Bandwidth of its memory, in GB/s; 0: unknown, and not considered.
        memory: Size of its memory, in GB; 0: unknown.
        share: Share of the peak that is expected to be reached.
        batch: Number of tokens it computes at once.
    """

    name: str
    half: float
    single: float
    bandwidth: float = 0
    memory: float = 0
    share: float = 0.4
    batch: int = 32_768

    def peak(self, dtype: str) -> float:
        """Operations per second in this number format."""
        return 1e12 * (self.single if dtype == "float32" else self.half)

    def dtype(self, name: str) -> str:
        """The number format itself, or the one that "auto" stands for: bfloat16 on a GPU, float32 on a CPU."""
        if name != "auto":
            return name
        return "float32" if self.name == CPU else "bfloat16"


CPU = "cpu"
_SHARE_OF_CPU = 0.5
_BATCH_OF_CPU = 512
_PROBE = 0.4  # seconds

DEVICES = {
    device.name: device
    for device in (
        Device("b200", 2250, 75, 8000, 180),
        Device("h200", 989, 67, 4800, 141),
        Device("h100", 989, 67, 3350, 80),
        Device("h100-pcie", 756, 51, 2000, 80),
        Device("a100", 312, 19.5, 2039, 80),
        Device("a100-40gb", 312, 19.5, 1555, 40),
        Device("mi300x", 1307, 163, 5300, 192),
        Device("l40s", 362, 91.6, 864, 48),
        Device("l4", 121, 30.3, 300, 24),
        Device("a10", 125, 31.2, 600, 24),
        Device("a10g", 70, 31.2, 600, 24),
        Device("t4", 65, 8.1, 320, 16),
        Device("v100", 125, 15.7, 900, 16),
        Device("rtx4090", 165, 82.6, 1008, 24),
        Device("rtx3090", 71, 35.6, 936, 24),
    )
}
"""Name -> device: dense products without sparsity, from the data sheets of the vendors (16 bit with 32-bit sums)."""


def device_named(text: str) -> tuple[int, Device]:
    """``"h100"`` -> (1, H100), ``"8xa100"`` -> (8, A100), ``"cpu"`` -> this machine, measured.

    Raises:
        OptionError: The device is not in the table.
    """
    number, name = number_and_name(text)
    return number, this_cpu() if name == CPU else DEVICES[name]


def number_and_name(text: str) -> tuple[int, str]:
    """``"8xa100"`` -> (8, "a100"), without measuring anything.

    Raises:
        OptionError: The device is not in the table.
    """
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?([a-z0-9-]+)", text.strip().lower())
    number, name = (int(match[1] or 1), match[2]) if match else (0, "")
    if not number or (name != CPU and name not in DEVICES):
        known = ", ".join([CPU, *DEVICES])
        raise OptionError(f"`device={text}` is not known", found=known, fix="use one of these, e.g. h100 or 8xa100")
    return number, name


@lru_cache(maxsize=1)
def this_cpu() -> Device:
    """The processors of this machine, with the speed of the fastest product in about a second."""
    half, single = (_probe(CPU, dtype) for dtype in ("bfloat16", "float32"))
    return Device(CPU, half, single, share=_SHARE_OF_CPU, batch=_BATCH_OF_CPU)


def this_device() -> Device:
    """The device that this machine would embed with: its GPU, or its processors."""
    import torch

    from hf_safefilter.model.load import pick_device

    device = pick_device(None, None)
    if device.type == "cpu":
        return this_cpu()
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else device.type
    words = re.split(r"[^a-z0-9]+", name)
    known = next((listed for listed in DEVICES.values() if listed.name in words), None)
    return known or Device(name, _probe(str(device), "bfloat16"), _probe(str(device), "float32"))


def measured(device: Device, dtype: str, operations_per_second: float) -> Device:
    """The device with the measured share of its peak."""
    return replace(device, share=operations_per_second / device.peak(dtype))


def _probe(device: str, dtype: str) -> float:
    """TFLOP/s of a product like those in a block, computed by the same path as in our models."""
    import torch

    from hf_safefilter.model.linears import prepack_if_faster

    rows, width = (512, 2048) if device == CPU else (8192, 4096)
    kind = getattr(torch, dtype)
    product = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False, device=device, dtype=kind))
    states = torch.randn(rows, width, device=device, dtype=kind)
    prepack_if_faster(product.requires_grad_(False))
    best = float("inf")
    with torch.inference_mode():
        end = time.perf_counter() + _PROBE
        product(states)
        while time.perf_counter() < end:
            begin = time.perf_counter()
            product(states)
            if device != CPU:
                torch.accelerator.synchronize()
            best = min(best, time.perf_counter() - begin)
    return 2 * rows * width**2 / best / 1e12
