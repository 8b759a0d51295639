"""Time and money: operations over speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_safefilter.errors import OptionError
from hf_safefilter.plan.devices import Device
from hf_safefilter.plan.lengths import Lengths
from hf_safefilter.plan.work import BYTES, Work

_TOKENISING = 0.35e-6  # seconds a token, on four cores: rendering and encoding, before the device gets to see it
_ROOM = 0.9  # of a device's memory that weights may take


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one kind of device takes.

    Attributes:
        device: the name, with the number of them.
        dtype: number format.
        seconds: for all rows, spread over all devices; without start-up.
        rows_per_second: of all devices together.
        share: of the peak, assumed or measured.
        measured: whether the share was.
        cost: of all rows, in the currency of the price; None without a price.
        cost_per_million: of a million rows.
        note: "" or what stands in the way.
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
    """What a data set takes, on any device, and on some.

    Attributes:
        work, lengths: what was counted.
        flops: operations for all rows.
        read_bytes: weights read from disk or the Hub, once a process.
        column_bytes: what the new columns add to the data set.
        cache_bytes: what the row cache takes.
        devices: one estimate each.
    """

    work: Work
    lengths: Lengths
    flops: float
    read_bytes: int
    column_bytes: float
    cache_bytes: float
    devices: tuple[Estimate, ...]

    def formulas(self) -> list[dict[str, str]]:
        """Each figure with the formula it comes from, numbers filled in."""
        w, n = self.work, self.lengths
        tokens, squared = f"{n.mean:.4g}", f"{n.squared:.4g}"
        flops = f"rows x (2 x {w.per_token:.4g} weights x {tokens} tokens + {w.per_pair:.4g} x {squared} squared tokens"
        if w.per_read:
            flops += f" + 2 x {w.per_row:.4g} + {w.per_read:.4g} x {tokens}, the deepest block at the read position"
        return [
            _line("operations", f"{flops})", f"{self.flops:.3g} FLOP"),
            _line("weights read", f"{w.weights:.4g} parameters x {w.stored_bytes} bytes", size(self.read_bytes)),
            _line(
                "new columns",
                f"rows x ({w.layers} layers x 2 bytes x {w.hidden_size} + 40 for id, reason and flag)",
                size(self.column_bytes),
            ),
            _line("row cache", f"rows x {w.layers} layers x (2 bytes x {w.hidden_size} + 20)", size(self.cache_bytes)),
            _line(
                "time",
                "larger of operations / (peak x share) and weights x batches / memory bandwidth; "
                f"+ {_TOKENISING * 1e6:.2g} us a token for tokenising, unless the share is measured; / devices",
                "below",
            ),
            _line("cost", "time x devices x price an hour", "below"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        from dataclasses import asdict

        return asdict(self) | {"devices": [asdict(one) for one in self.devices], "formulas": self.formulas()}


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
        work: what a row costs.
        lengths: how many rows, and how long.
        devices: number and kind.
        dtype: number format; "auto" is 16 bit on a GPU and float32 on a CPU.
        price: of one device for one hour, in any currency.
        measured: the devices' share of their peak was measured, tokenising included.

    Raises:
        OptionError: a number format or a price that makes no sense.
    """
    if dtype != "auto" and dtype not in BYTES:
        raise OptionError(f"dtype {dtype!r} is not known", fix=f"use auto or one of {', '.join(BYTES)}")
    if price is not None and not 0 <= price < float("inf"):
        raise OptionError(f"a price of {price} an hour makes no sense", fix="use e.g. 2.50")
    return Plan(
        work=work,
        lengths=lengths,
        flops=lengths.rows * work.flops(lengths.mean, lengths.squared),
        read_bytes=work.weights * work.stored_bytes,
        column_bytes=lengths.rows * work.column_bytes(),
        cache_bytes=lengths.rows * work.cache_bytes(),
        devices=tuple(_on(number, device, work, lengths, dtype, price, measured) for number, device in devices),
    )


def _on(
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
    hourly = None if price is None else price * seconds / 3600  # of one device for all rows, so of all for their shares
    return Estimate(
        device=device.name if number == 1 else f"{number}x{device.name}",
        dtype=dtype,
        seconds=seconds / number,
        rows_per_second=lengths.rows * number / seconds,
        share=device.share,
        measured=measured,
        cost=hourly,
        cost_per_million=None if hourly is None else hourly / lengths.rows * 1e6,
        note=_note(weights, device),
    )


def _note(weights: int, device: Device) -> str:
    if device.memory and weights > _ROOM * device.memory * 1e9:
        return f"does not fit: {size(weights)} of weights, {device.memory:.0f} GB of memory"
    return ""


def _line(what: str, formula: str, value: str) -> dict[str, str]:
    return {"figure": what, "formula": formula, "value": value}


def size(count: float) -> str:
    """Bytes for people: ``1.2 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds for people: ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"
