"""Time and cost of embedding: operations divided by speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_safefilter.checks import require_choice, require_number
from hf_safefilter.plan.devices import Device
from hf_safefilter.plan.lengths import Lengths
from hf_safefilter.plan.work import BYTES, Work
from hf_safefilter.step import ROWS_BY_BLOCKS

_TOKENISING = 0.35e-6  # seconds per token, on four cores: rendering and encoding, before the device gets the tokens
_MEMORY_FOR_WEIGHTS = 0.9  # share of a device's memory
_LOADED = 2e9  # bytes a second of a disk, for blocks that are loaded again and again


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time and cost on devices of one kind.

    Attributes:
        device: Name of the device, with their number where there are several.
        dtype: Number format.
        seconds: Time for all rows, spread over all devices; without start-up.
        rows_per_second: Speed of all devices together.
        share: Share of the peak speed, assumed or measured.
        measured: Whether the share was measured.
        cost: Cost of all rows, in the currency of the price; None without a price.
        cost_per_million: Cost of a million rows; None without a price.
        note: Why the device cannot be used, or that it reads the model block by block; "" if it holds it.
    """

    device: str
    dtype: str
    seconds: float
    rows_per_second: float
    share: float
    measured: bool
    cost: float | None
    cost_per_million: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What embedding a data set takes, on any device and on those asked about.

    Attributes:
        work: What a row takes, as a function of its tokens.
        lengths: Number and length of the rows.
        flops: Operations for all rows.
        read_bytes: Bytes of weights that each process reads from disk or the Hub.
        column_bytes: Bytes that the new columns add to the data set.
        cache_bytes: Bytes in the row cache.
        devices: One estimate for each device.
    """

    work: Work
    lengths: Lengths
    flops: float
    read_bytes: int
    column_bytes: float
    cache_bytes: float
    devices: tuple[Estimate, ...]

    def formulas(self) -> list[dict[str, str]]:
        """Each figure with its formula, with numbers filled in."""
        w = self.work
        tokens, squared, spans = (f"{n:.4g}" for n in (self.lengths.mean, self.lengths.squared, self.lengths.spans))
        flops = f"rows x (2 x {w.per_token:.4g} weights x {tokens} tokens + {w.per_pair:.4g} x {squared} squared tokens"
        if w.per_read:
            flops += f" + 2 x {w.per_row:.4g} + {w.per_read:.4g} x {tokens}, the deepest block at the read position"
        return [
            _line("operations", f"{flops})", f"{self.flops:.3g} FLOP"),
            _line("weights read", f"{w.weights:.4g} parameters x {w.stored_bytes} bytes", size(self.read_bytes)),
            _line(
                "new columns",
                f"rows x ({spans} spans x ({w.layers} vectors x 2 bytes x {w.hidden_size} + 12) "
                f"+ {40 + 4 * (1 + w.layers)} for id, reason, flag and offsets)",
                size(self.column_bytes),
            ),
            _line(
                "row cache",
                f"rows x {w.layers} vectors x ({spans} spans x (2 bytes x {w.hidden_size} + 12) + 28)",
                size(self.cache_bytes),
            ),
            _line(
                "time",
                "larger of operations / (peak x share) and weights x batches / memory bandwidth; "
                f"+ {_TOKENISING * 1e6:.2g} us a token for tokenising, unless the share is measured; "
                f"+ weights / {_LOADED / 1e9:.0f} GB/s for every {ROWS_BY_BLOCKS} rows, where they do not fit; "
                "/ devices",
                "below",
            ),
            _line("cost", "time x devices x price an hour", "below"),
        ]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        from dataclasses import asdict

        return asdict(self) | {"devices": [asdict(device) for device in self.devices], "formulas": self.formulas()}


def make_plan(
    work: Work,
    lengths: Lengths,
    devices: list[tuple[int, Device]],
    *,
    dtype: str = "auto",
    price: float | None = None,
    measured: bool = False,
) -> Plan:
    """Divide the work by the speed of each of `devices`.

    Args:
        work: What a row takes, as a function of its tokens.
        lengths: Number and length of the rows.
        devices: Pairs of a number of devices and their kind.
        dtype: Number format; "auto" is bfloat16 on a GPU and float32 on a CPU.
        price: Price of one device for one hour, in any currency; None: no cost is computed.
        measured: Whether the devices' share of the peak was measured, with tokenising.

    Raises:
        OptionError: The number format or the price is not allowed.
    """
    require_choice("dtype", dtype, ("auto", *BYTES))
    if price is not None:
        require_number("price", price, least=0)
    return Plan(
        work=work,
        lengths=lengths,
        flops=lengths.rows * work.flops(lengths.mean, lengths.squared),
        read_bytes=work.weights * work.stored_bytes,
        column_bytes=lengths.rows * work.column_bytes(lengths.spans),
        cache_bytes=lengths.rows * work.cache_bytes(lengths.spans),
        devices=tuple(_estimate(number, device, work, lengths, dtype, price, measured) for number, device in devices),
    )


def _estimate(
    number: int, device: Device, work: Work, lengths: Lengths, dtype: str, price: float | None, measured: bool
) -> Estimate:
    dtype = device.dtype(dtype)
    tokens = lengths.rows * lengths.mean
    weights = work.weights * BYTES[dtype]
    seconds = lengths.rows * work.flops(lengths.mean, lengths.squared) / (device.peak(dtype) * device.share)
    if device.bandwidth:
        seconds = max(seconds, weights * tokens / device.batch / (device.bandwidth * 1e9))
    if not measured:
        seconds += tokens * _TOKENISING
    note, loads = _room(work, lengths, weights, dtype, device)
    seconds += loads * weights / _LOADED
    cost = None if price is None else price * seconds / 3600  # n devices cost n times as much for 1/n of the time
    return Estimate(
        device=device.name if number == 1 else f"{number}x{device.name}",
        dtype=dtype,
        seconds=seconds / number,
        rows_per_second=lengths.rows * number / seconds,
        share=device.share,
        measured=measured,
        cost=cost,
        cost_per_million=None if cost is None else cost / lengths.rows * 1e6,
        note=note,
    )


def _room(work: Work, lengths: Lengths, weights: int, dtype: str, device: Device) -> tuple[str, float]:
    """A note on the device's memory, and how often the weights are loaded beyond once."""
    from hf_safefilter.model.block_by_block import MOST

    room = _MEMORY_FOR_WEIGHTS * device.memory * 1e9
    if not device.memory or weights <= room:
        return "", 0
    if 2 * weights / max(work.blocks, 1) > room:
        return f"two blocks do not fit: {size(weights)} of weights, {device.memory:.0f} GB of memory", 0
    states = lengths.mean * work.hidden_size * BYTES[dtype]
    at_once = max(1, min(ROWS_BY_BLOCKS, MOST / 2 / states))
    passes = max(1, lengths.rows / at_once)
    return f"block by block, {size(weights)} of weights loaded {passes:,.0f} times", passes


def _line(figure: str, formula: str, value: str) -> dict[str, str]:
    return {"figure": figure, "formula": formula, "value": value}


def size(count: float) -> str:
    """A number of bytes for people: ``1.2 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """A number of seconds for people: ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"
