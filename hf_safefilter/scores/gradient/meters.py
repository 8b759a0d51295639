"""What is summed up of many rows' gradients while they are computed, parameter by parameter.

`Norms` sums one number per row, |g|^2, and `Exact` another one, <g, G>; `Projected` sums the random projection of g.
All take a gradient as it is, or for a linear layer the two factors whose product it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch

from hf_safefilter.scores.gradient.projection import project, project_tokens

_AT_ONCE = 1 << 21  # entries of per-row gradients computed at a time, so that they stay in cache until they are used
_AT_ONCE_PROJECTED = 1 << 25  # drawing the signs takes longer than memory traffic does, so more rows share them
_TRAFFIC = 24  # number of multiplications that take as long as writing and reading one entry


class Meter(Protocol):
    """Takes the gradients of n rows, one parameter after another."""

    def add(self, name: str, gradients: torch.Tensor, rows: slice = slice(None)) -> None:
        """Gradients (m, *shape of the parameter) of the rows `rows`."""

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Gradients left_i^T right_i of all n rows, for `left` (n, tokens, a) and `right` (n, tokens, b)."""

    def add_tokens(self, name: str, ids: torch.Tensor, back: torch.Tensor) -> None:
        """Gradients of an embedding: for each row, vectors `back` (n, tokens, width) summed by `ids` (n, tokens)."""

    def add_overlap(self, twice: torch.Tensor) -> None:
        """The term 2 <g', g''> (n,), for a parameter whose gradient g' + g'' was added in two parts."""

    def scores(self) -> torch.Tensor:
        """The score of each row, float64 (n,) on the CPU; NaN where it has none."""

    def squared_norms(self) -> torch.Tensor:
        """|g|^2, float64 (n,) on the CPU."""


class Norms:
    """|g|^2 of `count` rows; the scores are log(|g|^2 + 1), NaN if g is not finite.

    Args:
        count: Number of rows, n.
        device: Device of the gradients.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._squares = _zeros(count, device)

    def add(self, name: str, gradients: torch.Tensor, rows: slice = slice(None)) -> None:
        """See `Meter`."""
        self._add_flat(name, widen(gradients).flatten(1), rows)

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """See `Meter`; computed in the faster of two exact ways."""
        left, right = widen(left), widen(right)
        tokens, a, b = left.shape[1], left.shape[2], right.shape[2]
        if tokens * tokens * (a + b) >= _TRAFFIC * a * b:
            for rows in row_slices(len(left), a * b, _AT_ONCE):
                self.add(name, left[rows].mT @ right[rows], rows)
        else:
            self._add_factors(name, left, right)

    def add_tokens(self, name: str, ids: torch.Tensor, back: torch.Tensor) -> None:
        """See `Meter`."""
        self._add_summed(name, *by_token(ids, back))

    def add_overlap(self, twice: torch.Tensor) -> None:
        """See `Meter`."""
        self._squares += twice

    def scores(self) -> torch.Tensor:
        """See `Meter`."""
        return _finite(self.squared_norms()).log1p()

    def squared_norms(self) -> torch.Tensor:
        """See `Meter`."""
        return self._squares.cpu().double()

    def _add_flat(self, name: str, flat: torch.Tensor, rows: slice) -> None:
        self._squares[rows] += flat.square().sum(1)

    def _add_factors(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        self._squares += ((left @ left.mT) * (right @ right.mT)).to(self._squares.dtype).sum((1, 2))

    def _add_summed(self, name: str, summed: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self._squares.index_add_(0, rows, summed.square().sum(1).to(self._squares.dtype))


class Exact(Norms):
    """<g, G> and |g|^2 of `count` rows.

    Args:
        anchor: G by parameter name, on the device of the gradients.
        count: Number of rows, n.
        normalize: Whether the scores are <g, G> / |g|, NaN if g is zero; else <g, G>. NaN if g is not finite.
    """

    def __init__(self, anchor: Mapping[str, torch.Tensor], count: int, normalize: bool = True) -> None:
        device = next(iter(anchor.values())).device
        super().__init__(count, device)
        self._anchor, self._normalize = anchor, normalize
        self._dots = _zeros(count, device)

    def scores(self) -> torch.Tensor:
        """See `Meter`."""
        dots = self._dots.cpu().double()
        return _by_length(dots, self.squared_norms()) if self._normalize else _finite(dots)

    def _add_flat(self, name: str, flat: torch.Tensor, rows: slice) -> None:
        self._dots[rows] += flat @ self._anchor[name].to(flat.dtype).flatten()
        super()._add_flat(name, flat, rows)

    def _add_factors(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        self._dots += ((left @ self._anchor[name].to(left.dtype)) * right).sum((1, 2))
        super()._add_factors(name, left, right)

    def _add_summed(self, name: str, summed: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self._dots.index_add_(0, rows, (summed * self._anchor[name][tokens]).sum(1).to(self._dots.dtype))
        super()._add_summed(name, summed, rows, tokens)


class Projected:
    """Random projections of the gradients of `count` rows.

    Args:
        seed: Seed of the signs.
        width: Width of the projection.
        count: Number of rows, n.
        anchor: The combined anchor gradient in the same projection, (width,); None if only `sums` is needed.
        device: Device of the gradients.
        normalize: As for `Exact`; the scores are estimates of its scores.
    """

    def __init__(
        self,
        seed: int,
        width: int,
        count: int,
        anchor: torch.Tensor | None,
        device: torch.device,
        normalize: bool = True,
    ) -> None:
        self._seed, self._width, self._anchor, self._normalize = seed, width, anchor, normalize
        self.sums = torch.zeros(count, width, device=device)

    def add(self, name: str, gradients: torch.Tensor, rows: slice = slice(None)) -> None:
        """See `Meter`."""
        self.sums[rows] += project(gradients.flatten(1), self._seed, name, self._width)

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """See `Meter`."""
        left, right = widen(left), widen(right)
        for rows in row_slices(len(left), left.shape[2] * right.shape[2], _AT_ONCE_PROJECTED):
            self.add(name, left[rows].mT @ right[rows], rows)

    def add_tokens(self, name: str, ids: torch.Tensor, back: torch.Tensor) -> None:
        """See `Meter`."""
        summed, rows, tokens = by_token(ids, back)
        self.sums += project_tokens(summed, rows, tokens, len(ids), self._seed, name, self._width)

    def add_overlap(self, twice: torch.Tensor) -> None:
        """Nothing to do: the projection of a sum is the sum of the projections."""

    def scores(self) -> torch.Tensor:
        """See `Meter`."""
        anchor = cast("torch.Tensor", self._anchor)  # never None where scores are needed
        dots = self.sums.cpu().double() @ anchor.cpu().double()
        return _by_length(dots, self.squared_norms()) if self._normalize else _finite(dots / self._width)

    def squared_norms(self) -> torch.Tensor:
        """See `Meter`; of the projections, without the factor 1/width that makes them estimates for the gradients."""
        return self.sums.cpu().double().square().sum(1)


def by_token(ids: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors summed over equal tokens of a row, (m, width), and the row and the token of each sum, (m,)."""
    words = int(ids.max()) + 1
    keys = ids + words * torch.arange(len(ids), device=ids.device)[:, None]
    pairs, inverse = torch.unique(keys.flatten(), return_inverse=True)
    summed = back.new_zeros(len(pairs), back.shape[-1]).index_add_(0, inverse, back.flatten(0, 1))
    return summed, pairs // words, pairs % words


def widen(values: torch.Tensor) -> torch.Tensor:
    """`values` in float64 if they are, else in float32."""
    return values if values.dtype == torch.float64 else values.float()


def row_slices(count: int, entries: int, at_once: int) -> list[slice]:
    """Slices over `count` rows of `entries` each, with about `at_once` entries per slice."""
    step = max(1, at_once // max(1, entries))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _zeros(count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.isfinite(), values, torch.nan)


def _by_length(dots: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    valid = (squares > 0) & squares.isfinite() & dots.isfinite()
    return torch.where(valid, dots / squares.sqrt(), torch.nan)
